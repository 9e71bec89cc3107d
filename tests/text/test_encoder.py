import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, ElectraConfig, ElectraModel

from method.runtime.errors import InputError
from method.text.encoder import TextEncoder
from method.text.encoder_files import encoder_digest
from tests.helpers.tiny_text_encoder import WIDTH, make_text_encoder

CPU = torch.device("cpu")
SENTENCES = [
    "A man walks to the table.",
    "He sits.",
    "A man walks to the table.",
    "Penny's T-shirt is naïve 東京",
    "He eats.",
    " ".join(["a man sits and walks"] * 5),
    " ".join(["a very long story about a table and a man"] * 40),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_text_encoder(tmp_path_factory.mktemp("encoder") / "roberta", SENTENCES)


def naive(folder: Path, sentence: str, max_tokens: int) -> torch.Tensor:
    """A single sentence by transformers, truncated to the 60 positions of the encoder, without padding."""
    ids = AutoTokenizer.from_pretrained(folder)(sentence, truncation=True, max_length=60, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder).eval()(**ids).last_hidden_state[0, :max_tokens]
    return hidden / (hidden.norm(dim=1, keepdim=True) + 1e-5)


@pytest.mark.parametrize("token_budget", [None, 1, 70, 10_000])
def test_batches_equal_single_sentences(folder: Path, token_budget: int | None) -> None:
    encoded = TextEncoder(folder, WIDTH, 30, CPU, token_budget).encode(SENTENCES)
    single = [naive(folder, sentence, 30) for sentence in SENTENCES]
    assert encoded.layout.lengths == tuple(len(rows) for rows in single)
    assert max(encoded.layout.lengths) == 30
    assert encoded.values.dtype == torch.float32
    torch.testing.assert_close(encoded.values, torch.cat(single), atol=2e-6, rtol=0)


@pytest.fixture(scope="module")
def electra(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that cannot be truncated to fewer layers."""
    copy = tmp_path_factory.mktemp("electra") / "electra"
    shutil.copytree(folder, copy)
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    sizes: dict[str, Any] = {
        "embedding_size": WIDTH,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "max_position_embeddings": 60,
    }
    config = ElectraConfig(vocab_size=vocabulary, num_hidden_layers=2, num_attention_heads=4, **sizes)
    ElectraModel(config).save_pretrained(copy)
    return copy


@pytest.mark.parametrize("layer", [-3, -2, -1, 1])
@pytest.mark.parametrize("architecture", ["folder", "electra"])
def test_any_layer_without_special_tokens(architecture: str, layer: int, request: pytest.FixtureRequest) -> None:
    """As for TVR: the encoder sees `<s>` and `</s>`, and their rows are dropped."""
    folder: Path = request.getfixturevalue(architecture)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    single = []
    for sentence in SENTENCES:
        ids = tokenizer(sentence, truncation=True, max_length=60, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**ids, output_hidden_states=True).hidden_states[layer][0, 1:-1][:30]
        single.append(hidden / (hidden.norm(dim=1, keepdim=True) + 1e-5))
    encoder = TextEncoder(folder, WIDTH, 30, CPU, layer=layer, special_tokens="drop")
    encoded = encoder.encode(SENTENCES)
    assert encoded.layout.lengths == tuple(map(len, single))
    assert max(encoded.layout.lengths) == 30
    assert encoder.count_rows(SENTENCES) == len(encoded.values)
    torch.testing.assert_close(encoded.values, torch.cat(single), atol=2e-6, rtol=0)
    kept = encoder.with_settings(layer, "keep").encode(SENTENCES[:1]).values
    torch.testing.assert_close(kept[1:-1], single[0], atol=2e-6, rtol=0)


@pytest.mark.parametrize("layer", [-4, 3])
def test_a_missing_layer_is_an_error(folder: Path, layer: int) -> None:
    with pytest.raises(InputError, match=rf"--text_layer {layer}: .* has 2 layers, expected -3 to 2"):
        TextEncoder(folder, WIDTH, 30, CPU, layer=layer)


def test_a_sentence_without_tokens_is_an_error(folder: Path) -> None:
    assert TextEncoder(folder, WIDTH, 30, CPU).encode([""]).layout.lengths == (2,)
    with pytest.raises(InputError, match="'': no token"):
        TextEncoder(folder, WIDTH, 30, CPU, special_tokens="drop").encode(["He sits.", ""])


def test_a_long_sentence_is_truncated_after_encoding(folder: Path) -> None:
    long, short = TextEncoder(folder, WIDTH, 60, CPU), TextEncoder(folder, WIDTH, 30, CPU)
    torch.testing.assert_close(short.encode(SENTENCES[-1:]).values, long.encode(SENTENCES[-1:]).values[:30])


def test_equal_sentences_are_encoded_once(folder: Path) -> None:
    encoder = TextEncoder(folder, WIDTH, 30, CPU)
    sentences = ["He sits.", "He eats.", "He sits.", "He sits."]
    tokens, order = encoder.tokenize(sentences)
    assert (len(tokens), order) == (2, [0, 1, 0, 0])
    encoded = encoder.encode(sentences)
    length = encoded.layout.lengths[0]
    assert torch.equal(encoded.values[:length], encoded.values[-length:])


def test_no_sentences(folder: Path) -> None:
    encoded = TextEncoder(folder, WIDTH, 30, CPU).encode([])
    assert (len(encoded), encoded.values.shape) == (0, (0, WIDTH))


def test_counts_rows_without_encoding(folder: Path) -> None:
    encoder = TextEncoder(folder, WIDTH, 30, CPU)
    assert encoder.count_rows(SENTENCES) == len(encoder.encode(SENTENCES).values)
    assert encoder.count_rows([]) == 0


def test_it_is_frozen_and_layers_on_top_are_trainable(folder: Path) -> None:
    encoder = TextEncoder(folder, WIDTH, 30, CPU)
    encoded = encoder.encode(SENTENCES)
    assert not encoded.values.requires_grad
    assert torch.equal(encoder.encode(SENTENCES).values, encoded.values)  # no dropout
    layers = torch.nn.Sequential(torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, 3))
    layers(encoded.values).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in layers.parameters())


def test_loading_keeps_the_random_state_and_prints_nothing(
    tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = changed(folder, tmp_path, without_pooler)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    encoder = TextEncoder(copy, WIDTH, 30, CPU)
    assert torch.equal(torch.rand(3), expected)
    encoder.encode(SENTENCES)
    assert capfd.readouterr() == ("", "")
    torch.testing.assert_close(
        encoder.encode(SENTENCES).values, TextEncoder(folder, WIDTH, 30, CPU).encode(SENTENCES).values
    )


def test_bf16_is_within_rounding_of_single_precision(folder: Path) -> None:
    single = TextEncoder(folder, WIDTH, 30, CPU).encode(SENTENCES).values
    in_bf16 = TextEncoder(folder, WIDTH, 30, CPU, precision="bf16").encode(SENTENCES).values
    assert in_bf16.dtype == torch.float32
    assert not torch.equal(in_bf16, single)
    torch.testing.assert_close(in_bf16, single, atol=2e-2, rtol=0)


def changed(folder: Path, tmp_path: Path, change: Callable[[Path], object]) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(copy)
    return copy


def set_config(copy: Path, **values: object) -> None:
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def keep_weights(copy: Path, keep: Callable[[str], bool]) -> None:
    path = copy / "model.safetensors"
    weights = {key: value for key, value in load_file(path).items() if keep(key)}
    save_file(weights, path, metadata={"format": "pt"})


def without_pooler(copy: Path) -> None:
    keep_weights(copy, lambda key: not key.startswith("pooler."))


def without_tokenizer(copy: Path) -> None:
    for name in ("tokenizer.json", "merges.txt"):
        (copy / name).unlink(missing_ok=True)


def cut_weights(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def pickled_code(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Bomb(copy / "ran")}, copy / "pytorch_model.bin")


def custom_code(copy: Path) -> None:
    set_config(copy, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"})
    (copy / "own.py").write_text(f"import os\nos.mkdir({str(copy / 'ran')!r})\n")


def other_tokenizer(copy: Path) -> None:
    donor = make_text_encoder(copy / "extra", ["only these few words"])
    for name in ("config.json", "model.safetensors"):
        shutil.copy(donor / name, copy / name)


@pytest.mark.parametrize(("change", "named"), [
    (shutil.rmtree, "no such folder"),
    (lambda copy: (copy / "config.json").unlink(), "no config.json, expected a complete text encoder"),
    (lambda copy: (copy / "model.safetensors").unlink(), "no model.safetensors,"),
    (without_tokenizer, "no tokenizer.json (or vocab.json with merges.txt),"),
    (lambda copy: (copy / "tokenizer.json").write_text("{"), "cannot be loaded"),
    (lambda copy: (copy / "config.json").write_text("{"), "cannot be loaded"),
    (cut_weights, "cannot be loaded"),
    (pickled_code, "cannot be loaded"),
    (lambda copy: (copy / "model.safetensors").write_text(POINTER), "safetensors: a Git LFS pointer, not the file"),
    (custom_code, "cannot be loaded"),
    (lambda copy: set_config(copy, num_hidden_layers=3), "16 weights missing, such as encoder.layer.2.attention"),
    (lambda copy: set_config(copy, hidden_size=64), f"hidden size 64, expected {WIDTH} (--q_feat_size)"),
    (lambda copy: set_config(copy, intermediate_size=17), "cannot be loaded"),
    (lambda copy: set_config(copy, model_type="bart", is_encoder_decoder=True), "expected an encoder without"),
    (other_tokenizer, "the model only"),
])  # fmt: skip
def test_an_invalid_folder_is_a_one_line_error_with_a_remedy(
    tmp_path: Path, folder: Path, change: Callable[[Path], object], named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = changed(folder, tmp_path, change)
    capfd.readouterr()
    with pytest.raises(InputError) as caught:
        TextEncoder(copy, WIDTH, 30, CPU)
    line = str(caught.value)
    assert line.startswith(f"{copy}: ")
    assert named in line
    assert "python utils/download_roberta.py" in line
    assert "\n" not in line
    assert not (copy / "ran").exists()
    assert capfd.readouterr() == ("", "")


def test_an_invalid_hub_timeout_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With it, the import of transformers fails."""
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "abc")
    with pytest.raises(InputError, match=r"^HF_HUB_DOWNLOAD_TIMEOUT 'abc': expected a whole number of seconds"):
        TextEncoder(folder, WIDTH, 30, CPU)


def test_pytorch_weights_load(tmp_path: Path, folder: Path) -> None:
    def use_pytorch_format(copy: Path) -> None:
        torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
        (copy / "model.safetensors").unlink()

    copy = changed(folder, tmp_path, use_pytorch_format)
    expected = TextEncoder(folder, WIDTH, 30, CPU).encode(SENTENCES).values
    assert torch.equal(TextEncoder(copy, WIDTH, 30, CPU).encode(SENTENCES).values, expected)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_the_digest_covers_the_files_that_determine_the_features(tmp_path: Path, folder: Path, name: str) -> None:
    def appended(copy: Path) -> None:
        with (copy / name).open("ab") as file:
            file.write(b" ")

    def unrelated(copy: Path) -> None:
        (copy / "README.md").write_text("hello")

    assert encoder_digest(changed(folder, tmp_path / "a", unrelated)) == encoder_digest(folder)
    assert encoder_digest(changed(folder, tmp_path / "b", appended)) != encoder_digest(folder)
