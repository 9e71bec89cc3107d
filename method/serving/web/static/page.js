// Keys and players. The page searches and links without this; nothing here makes markup out of text.
"use strict";

const box = document.getElementById("q");
const results = [...document.querySelectorAll("article")];

// Jump to a share 0..1 of a result's video and play it.
function play(result, share) {
  const video = result.querySelector("video");
  if (!video) return;
  for (const other of document.querySelectorAll("video")) if (other !== video) other.pause();
  const go = () => {
    video.currentTime = share * video.duration;
    video.play().catch(() => {}); // the browser may want a click on the player itself
  };
  if (video.readyState >= HTMLMediaElement.HAVE_METADATA) {
    go();
  } else {
    video.addEventListener("loadedmetadata", go, { once: true });
    video.preload = "auto";
    video.load();
  }
}

function prepare(result) {
  const video = result.querySelector("video");
  if (!video) return;
  const start = Number(result.dataset.start);
  const button = result.querySelector(".play");
  button.hidden = false;
  button.addEventListener("click", () => play(result, start));
  result.querySelector(".timeline").addEventListener("click", (event) => {
    const frame = event.currentTarget.getBoundingClientRect();
    play(result, Math.min(Math.max((event.clientX - frame.left) / frame.width, 0), 1));
  });
  video.addEventListener("error", () => {
    result.querySelector(".unplayable").hidden = false;
  });
  // A picture of the moment, once the result comes into view.
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    video.addEventListener("loadedmetadata", () => {
      if (video.paused) video.currentTime = start * video.duration;
    }, { once: true });
    video.preload = "metadata";
  }).observe(video);
}

function toBox() {
  box.focus();
  box.select();
}

// Focus the result that is `step` behind the present one; before the first is the box.
function move(step) {
  const present = results.indexOf(document.activeElement.closest("article"));
  const next = present < 0 ? (step > 0 ? 0 : -1) : present + step;
  if (next < 0) {
    toBox();
  } else if (next < results.length) {
    results[next].focus();
  }
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const inBox = event.target === box;
  if (event.target instanceof HTMLVideoElement) return; // players have keys of their own
  if (event.key === "/" && !inBox) {
    toBox();
  } else if (event.key === "Escape" && inBox) {
    box.blur();
  } else if (results.length && (event.key === "ArrowDown" || (event.key === "j" && !inBox))) {
    move(1);
  } else if (results.length && !inBox && (event.key === "ArrowUp" || event.key === "k")) {
    move(-1);
  } else if (event.key === "Enter" && results.includes(event.target)) {
    play(event.target, Number(event.target.dataset.start));
  } else {
    return;
  }
  event.preventDefault();
});

results.forEach(prepare);
