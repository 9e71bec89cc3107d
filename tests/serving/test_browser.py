"""The web page in a browser: Chromium without a window, driven by chromedriver.

Skipped where they are missing (Debian: chromium and chromium-driver).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.helpers import small_videos
from tests.helpers.search_runs import kitchen, make_searcher, serving, write_video

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --mute-audio --window-size=1100,900"
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason=f"no {'chromium' if CHROMIUM is None else 'chromedriver'} on the PATH (Debian: chromium, chromium-driver)",
)

SENTENCE = "a person opens the door"
HOSTILE = '"><script>document.title = "run"</script><img src=x onerror="document.title = 1">'


class Page:
    """A browser on the page."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver = driver
        self.address = address

    def open(self, rest: str = "") -> None:
        self.driver.get(f"{self.address}/{rest}")

    def press(self, *keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(*keys)

    def js(self, expression: str) -> Any:
        return self.driver.execute_script(f"return {expression}")

    def wait(self, holds: Callable[[], object]) -> None:
        WebDriverWait(self.driver, 20).until(lambda _: holds())

    @property
    def results(self) -> list[str]:
        return [heading.text for heading in self.driver.find_elements(By.CSS_SELECTOR, "article h2")]

    @property
    def focused(self) -> str:
        return str(self.js("document.activeElement.id"))

    def complaints(self) -> list[str]:
        """What the browser logged: blocked content, missing files, errors of the script."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for video_id in kitchen():
        if video_id not in ("v00", "v01", "v03"):
            write_video(folder / f"{video_id}.webm")
    small_videos.write_video(folder / "v03.avi", list(range(0, 6000, 100)), codec="mpeg4")
    (folder / "v01.mp4").write_bytes(b"no film")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with serving(folder, HOSTILE) as (address, _):
        yield address


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: webdriver.Chrome, address: str) -> Page:
    page = Page(driver, address)
    page.open()
    page.complaints()
    return page


def test_a_search_survives_a_reload_and_has_a_permanent_link(page: Page) -> None:
    assert page.focused == "q"
    page.press(SENTENCE, Keys.ENTER)
    page.wait(lambda: len(page.results) == 5)
    found = page.results
    expected = make_searcher({**kitchen(), HOSTILE: [HOSTILE]}).search(SENTENCE, 5)
    assert found == [hit.video_id for hit in expected.hits]
    link = page.driver.current_url
    assert link == f"{page.address}/?q=a+person+opens+the+door"
    page.driver.refresh()
    assert page.results == found
    page.open()
    page.driver.get(link)
    assert page.results == found
    assert page.js("document.getElementById('q').value") == SENTENCE
    assert not page.complaints()


def test_every_timeline_is_drawn_and_shows_its_moment(page: Page) -> None:
    page.open("?q=a+man")
    for box in page.js("[...document.querySelectorAll('.area')].map(path => path.getBoundingClientRect().toJSON())"):
        assert box["width"] > 700
        assert 0 < box["height"] < 60
    starts = page.js("[...document.querySelectorAll('article')].map(article => Number(article.dataset.start))")
    bands = page.js("[...document.querySelectorAll('.band')].map(band => Number(band.getAttribute('x')))")
    assert bands == pytest.approx([1000 * start for start in starts])


def test_arrow_keys_move_between_box_and_results(page: Page) -> None:
    page.open("?q=a+man")
    assert page.focused == ""
    page.press("j")
    assert page.focused == "r1"
    page.press(Keys.ARROW_DOWN)
    page.press("j")
    assert page.focused == "r3"
    page.press(Keys.ARROW_UP)
    assert page.focused == "r2"
    page.press("k", "k")
    assert page.focused == "q"
    page.press("jk/ ")  # letters like any other in the box, where the old query was selected
    assert page.js("document.activeElement.value") == "jk/ "
    page.press(Keys.ARROW_DOWN)
    assert page.focused == "r1"
    page.press("/")
    assert page.focused == "q"
    page.press(Keys.ESCAPE)
    assert page.focused == ""
    for _ in range(9):
        page.press("j")
    assert page.focused == "r5"
    box = page.js("document.activeElement.getBoundingClientRect().toJSON()")
    assert 0 <= box["top"] < 900


def test_tab_goes_from_the_box_through_the_results(page: Page) -> None:
    page.open("?q=a+man")
    order = []
    for _ in range(40):
        page.press(Keys.TAB)
        order.append(page.focused)
    places = [order.index(name) for name in ("q", "r1", "r2", "r3", "r4", "r5")]
    assert places == sorted(places)


def playing(page: Page, video_id: str) -> list[dict[str, Any]]:
    return list(
        page.js(
            "[...document.querySelectorAll('article')].map(article => ({id: article.querySelector('h2').textContent,"
            "start: Number(article.dataset.start), video: article.querySelector('video')})).filter(one => one.video)"
            f".filter(one => one.id === {video_id!r}).map(one => ({{start: one.start, at: one.video.currentTime,"
            "paused: one.video.paused, duration: one.video.duration}))"
        )
    )


def test_enter_plays_the_moment_and_a_click_on_the_timeline_jumps(page: Page) -> None:
    page.open("?id=v05%23enc%230&top=15")
    number = page.results.index("v05") + 1
    article = page.driver.find_element(By.ID, f"r{number}")
    page.driver.execute_script("arguments[0].focus()", article)
    page.press(Keys.ENTER)
    page.wait(lambda: not playing(page, "v05")[0]["paused"])
    (video,) = playing(page, "v05")
    assert video["duration"] == pytest.approx(4, abs=0.3)
    assert video["at"] >= video["start"] * video["duration"] - 0.25
    page.driver.execute_script("arguments[0].querySelector('video').pause()", article)
    timeline = article.find_element(By.CSS_SELECTOR, ".timeline")
    webdriver.ActionChains(page.driver).move_to_element(timeline).click().perform()  # its middle
    page.wait(lambda: 1.8 <= playing(page, "v05")[0]["at"] <= 3.9)


def test_a_click_on_a_further_moment_plays_it(page: Page) -> None:
    page.open("?id=v05%23enc%230&top=15")
    marks = page.driver.find_elements(By.CSS_SELECTOR, ".further a[href*='v05']")
    mark = max(marks, key=lambda mark: float(str(mark.get_attribute("data-start"))))
    start = float(str(mark.get_attribute("data-start")))
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    mark.click()
    page.wait(lambda: not playing(page, "v05")[0]["paused"])
    assert playing(page, "v05")[0]["at"] >= start * 4 - 0.3
    assert page.js("location.search") == "?id=v05%23enc%230&top=15"  # the link is not followed


ALONE = """
const [own] = arguments;
return (!own.paused || own.ended || own.error) &&
  [...document.querySelectorAll("video")].every((video) => video === own || video.paused);
"""


def test_only_one_video_plays(page: Page) -> None:
    page.open("?q=a+man&top=15")
    buttons = [button for button in page.driver.find_elements(By.CSS_SELECTOR, ".play") if button.is_displayed()]
    for button in buttons[:3]:
        page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
        own = button.find_element(By.XPATH, "ancestor::article//video")
        page.wait(partial(page.driver.execute_script, ALONE, own))


def test_pages_and_similar_moments_are_links(page: Page) -> None:
    page.open("?q=a+man")
    first = page.results
    page.driver.find_element(By.LINK_TEXT, "Next page").click()
    page.wait(lambda: page.js("location.search") == "?q=a+man&offset=5")
    assert not {*page.results} & {*first}
    page.driver.find_element(By.LINK_TEXT, "Previous page").click()
    page.wait(lambda: page.results == first)
    page.driver.find_element(By.LINK_TEXT, "More like this").click()
    page.wait(lambda: page.js("location.search").startswith("?like="))
    assert len(page.results) == 5
    assert page.driver.find_element(By.TAG_NAME, "h1").text.startswith(f"Moments like {first[0]}@")
    assert not page.complaints()


def test_a_file_that_cannot_be_played_is_offered(page: Page) -> None:
    page.open("?q=a+man&top=15")
    number = page.results.index("v01") + 1
    article = page.driver.find_element(By.ID, f"r{number}")
    page.driver.execute_script("arguments[0].scrollIntoView(); arguments[0].focus()", article)
    page.press(Keys.ENTER)
    page.wait(lambda: article.find_element(By.CSS_SELECTOR, ".unplayable").is_displayed())


def result(page: Page, video_id: str) -> Any:
    """The article of a video, in view."""
    page.open("?id=v03%23enc%230&top=15")
    article = page.driver.find_element(By.ID, f"r{page.results.index(video_id) + 1}")
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", article)
    return article


def is_shown(page: Page, picture: Any) -> bool:
    return bool(page.driver.execute_script("return arguments[0].complete && arguments[0].naturalWidth > 0", picture))


def test_moments_have_pictures(page: Page) -> None:
    for video_id, size in (("v05", [64, 48]), ("v01", [160, 90])):  # of the broken file, a placeholder
        pictures = result(page, video_id).find_elements(By.CSS_SELECTOR, ".still")
        assert pictures
        for picture in pictures:
            page.wait(partial(is_shown, page, picture))
            script = "return [arguments[0].naturalWidth, arguments[0].naturalHeight]"
            assert page.driver.execute_script(script, picture) == size
    assert not result(page, "v00").find_elements(By.CSS_SELECTOR, ".still")
    assert page.js("[...document.querySelectorAll('.still')].every(one => one.loading === 'lazy')")


def test_a_clip_is_played_instead_of_an_avi_file(page: Page) -> None:
    article = result(page, "v03")
    article.find_element(By.CSS_SELECTOR, ".play").click()
    state = "const v = arguments[0].querySelector('video'); return [v.currentSrc, v.currentTime, v.duration]"
    page.wait(lambda: "/clip/" in page.driver.execute_script(state, article)[0])
    page.wait(lambda: page.driver.execute_script(state, article)[1] > 0)
    start, end = (int(part) / 10_000 for part in page.driver.execute_script(state, article)[0].split("/")[4:6])
    assert page.driver.execute_script(state, article)[2] == pytest.approx(6 * (end - start), abs=0.3)
    assert "cannot play the .avi file. The moment is played as a clip instead." in article.text


def test_markup_is_shown_and_not_run(page: Page) -> None:
    page.driver.find_element(By.ID, "q").send_keys(HOSTILE, Keys.ENTER)
    page.wait(lambda: len(page.results) == 5)
    assert page.driver.find_element(By.TAG_NAME, "h1").text == HOSTILE
    assert page.driver.title.startswith('"><script>')
    page.open("?q=x&top=15")
    assert HOSTILE in page.results
    assert page.driver.title.startswith("x ")
    assert page.js("[...document.images].every(one => one.className === 'still')")


@pytest.mark.parametrize("address_rest", ["", "?q=a+man&top=15", "?id=v05%23enc%230", "?q=" + "x" * 600])
def test_a_phone_needs_no_sideways_scrolling(page: Page, address_rest: str) -> None:
    metrics = {"width": 320, "height": 640, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.open(address_rest)
        assert page.js("[innerWidth, document.documentElement.scrollWidth]") == [320, 320]
        box = page.js("document.getElementById('q').getBoundingClientRect().toJSON()")
        assert box["height"] >= 40
        assert box["right"] <= 320
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_in_both_colour_schemes(page: Page, scheme: str) -> None:
    """Contrast of at least 4.5, WCAG's AA."""
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    page.open("?id=v05%23enc%230&top=15")
    found = page.driver.execute_script(
        """
        const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
        const behind = (node) => {
          for (; node; node = node.parentElement) {
            const colour = rgb(getComputedStyle(node).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
          }
        };
        return ["h1", ".quiet", "h2", ".rank", ".score", ".branches", ".span", ".axis", "summary", "label", ".right",
                "button[type=submit]", ".play", ".like"].map((selector) => {
          const node = document.querySelector(selector);
          return [selector, rgb(getComputedStyle(node).color), behind(node)];
        });
        """
    )
    for selector, text, ground in found:
        lighter, darker = sorted((_luminance(text), _luminance(ground)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, selector


def _luminance(colour: list[float]) -> float:
    linear = [c / 3294.6 if c <= 10.31 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_works_without_script(page: Page) -> None:
    page.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.open()
        page.driver.find_element(By.ID, "q").send_keys(SENTENCE, Keys.ENTER)
        page.wait(lambda: len(page.driver.find_elements(By.CSS_SELECTOR, "article h2")) == 5)
        assert not [one for one in page.driver.find_elements(By.CSS_SELECTOR, ".play") if one.is_displayed()]
    finally:
        page.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
