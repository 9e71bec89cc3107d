// Keyboard shortcuts and video players. Search and links work without this; nothing here builds markup from text.
"use strict";

const box = document.getElementById("q");
const results = [...document.querySelectorAll("article")];

// Seek to a fraction 0..1 of a result's video and play it; or play a clip if the browser cannot play the video.
function play(result, fraction, clip = result.dataset.clip) {
  const video = result.querySelector("video");
  if (!video) return;
  for (const other of document.querySelectorAll("video")) if (other !== video) other.pause();
  video.wanted = clip;
  if (video.playsClips) {
    if (video.getAttribute("src") !== clip) video.src = clip;
    video.currentTime = 0;
    video.play().catch(() => {});
    return;
  }
  const go = () => {
    video.currentTime = fraction * secondsOf(result, video);
    video.play().catch(() => {}); // the browser may require a click on the player
  };
  if (video.readyState >= HTMLMediaElement.HAVE_METADATA) {
    go();
  } else {
    video.addEventListener("loadedmetadata", go, { once: true });
    video.preload = "auto";
    video.load();
  }
}

// The duration by which moments were found; that of the file may count sound that is longer.
function secondsOf(result, video) {
  return Number(result.dataset.seconds) || video.duration;
}

// The server may be busy with other pictures.
function retry(picture) {
  let tries = 0;
  const again = () => {
    if (tries++ < 8) setTimeout(() => { picture.src = picture.getAttribute("src"); }, 700 * tries);
  };
  picture.addEventListener("error", again);
  if (picture.complete && !picture.naturalWidth && picture.currentSrc) again();
}

function prepare(result) {
  result.querySelectorAll(".still").forEach(retry);
  const video = result.querySelector("video");
  if (!video) return;
  const start = Number(result.dataset.start);
  const button = result.querySelector(".play");
  button.hidden = false;
  button.addEventListener("click", () => play(result, start));
  for (const mark of result.querySelectorAll(".further a")) {
    mark.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return; // opens the file elsewhere
      event.preventDefault();
      play(result, Number(mark.dataset.start), mark.dataset.clip);
    });
  }
  result.querySelector(".timeline").addEventListener("click", (event) => {
    const frame = event.currentTarget.getBoundingClientRect();
    play(result, Math.min(Math.max((event.clientX - frame.left) / frame.width, 0), 1));
  });
  video.addEventListener("error", () => {
    result.querySelector(".unplayable").hidden = false;
    const hasClip = Boolean(result.dataset.clip) && !video.playsClips;
    result.querySelector(".as-clip").hidden = !hasClip;
    if (!hasClip) return;
    video.playsClips = true;
    video.preload = "none"; // a clip is made when it is played
    video.src = result.dataset.clip;
    if (video.wanted) play(result, start, video.wanted);
  });
  // Show a still of the moment once the result scrolls into view.
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    video.addEventListener("loadedmetadata", () => {
      if (video.paused && !video.playsClips) video.currentTime = start * secondsOf(result, video);
    }, { once: true });
    video.preload = "metadata";
  }).observe(video);
}

function focusBox() {
  box.focus();
  box.select();
}

// Move the focus by `step` results; the search box comes before the first.
function move(step) {
  const current = results.indexOf(document.activeElement.closest("article"));
  const next = current < 0 ? (step > 0 ? 0 : -1) : current + step;
  if (next < 0) {
    focusBox();
  } else if (next < results.length) {
    results[next].focus();
  }
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const inBox = event.target === box;
  if (event.target instanceof HTMLVideoElement) return; // players have their own shortcuts
  if (event.key === "/" && !inBox) {
    focusBox();
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
