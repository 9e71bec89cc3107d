"""The model card of an exported model: README.md with the metadata that hubs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from method.evaluation.metrics import RECALLS
from method.model.architecture import Architecture

_UNSTATED = "other"

_TEXT = """# {name}

A model for partially relevant video retrieval: a sentence describes a moment, and whole untrimmed videos are ranked by
their best matching moment. The method is A3PRVR, *Action-and-object Aware Alignment for Partially Relevant Video
Retrieval* (AAAI 2026, vol. 40, pp. 2814-2822).

| | |
|---|---|
| dataset | {dataset} |
| origin | {origin} |
| branches | {branches} |
| query features | {query_width} wide |
| epoch | {epoch} |

## Use

`model.safetensors` has the weights, `config.json` the architecture and the options of the training. Nothing in the
folder is a pickle. With the features of the dataset in place:

```bash
python method/evaluate.py --eval_ckpt FOLDER
python method/search.py --eval_ckpt FOLDER "a person opens the fridge"
```

`FOLDER` is this folder, or `owner/name` or `owner/name@revision` of the model on the Hub.

## Results

{results}

## License

{license}
"""


def model_card(
    name: str,
    architecture: Architecture,
    *,
    dataset: str,
    epoch: int,
    published: bool,
    metrics: Mapping[str, Any] | None,
    license_id: str | None,
) -> str:
    """The text of a model card.

    Args:
        name: title of the model.
        architecture: of the model.
        dataset: that it was trained on.
        epoch: of the checkpoint, from 0.
        published: whether the checkpoint is in the form of the paper's authors, and so is probably theirs.
        metrics: content of metrics.json, if the model was evaluated; only these numbers are stated.
        license_id: identifier that the exporter chose, such as mit; None: none was stated.
    """
    front: dict[str, Any] = {"license": license_id or _UNSTATED}
    if license_id is None:
        front["license_name"] = "not-stated"
    front |= {
        "tags": ["partially-relevant-video-retrieval", "text-to-video-retrieval", "a3prvr"],
        "language": ["en"],
        "datasets": [dataset],
    }
    if metrics is not None:
        front["model-index"] = [{"name": name, "results": [_result(metrics, dataset)]}]
    origin = "a checkpoint in the published form" if published else "trained with this program"
    text = _TEXT.format(
        name=name,
        dataset=dataset,
        origin=origin,
        branches=", ".join(f"{branch} ({spec.key}, {spec.width})" for branch, spec in architecture.branches.items()),
        query_width=architecture.query_width,
        epoch=epoch,
        results=_results(metrics),
        license=_license(published, license_id),
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n{text}"


def _result(metrics: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    types = {key: f"recall_at_{key[1:]}" for key in RECALLS} | {"sumr": "sum_of_recalls"}
    values = [{"type": types[key], "name": label, "value": metrics["fused"][key]} for key, label in RECALLS.items()]
    return {
        "task": {"type": "text-to-video-retrieval", "name": "Partially relevant video retrieval"},
        "dataset": {"name": dataset, "type": dataset, "split": "evaluated"},
        "metrics": values,
    }


def _results(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return "Not measured: no metrics were given when the model was exported."
    scores = [name for name, values in metrics.items() if isinstance(values, Mapping) and "sumr" in values]
    lines = [
        f"{metrics['queries']} captions, {metrics['videos']} videos, recall in percent:",
        "",
        f"| score | {' | '.join(RECALLS.values())} |",
        f"|{'---|' * (1 + len(RECALLS))}",
    ]
    lines += [f"| {name} | {' | '.join(f'{metrics[name][key]:.1f}' for key in RECALLS)} |" for name in scores]
    return "\n".join([*lines, "", "`metrics.json` has them in full."])


def _license(published: bool, license_id: str | None) -> str:
    stated = (
        f"The license `{license_id}` was chosen by the person who exported the model."
        if license_id
        else "Whoever exported the model stated no license: ask before you use it. "
        "(To the exporter: `--license` of utils/convert_checkpoint.py states one.)"
    )
    origin = (
        "The weights were converted from a checkpoint in the published form; the terms of its release apply."
        if published
        else "The weights were trained on features of a dataset, which has terms of its own."
    )
    return f"{stated} {origin} The program that runs the model is under the MIT license, the weights are not."
