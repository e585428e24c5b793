"""The page in a browser, on a server that says what a test tells it to: failures, focus, speech, sizes, colours."""

import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys

from moejax.serving.errors import ApiError
from tests.messages import says
from tests.moejax.serving.page_browser import Page, wait_for
from tests.moejax.serving.page_stub import FACTS, RUNNING, Stub, stubbed, tokens

LARGE = {"num_layers": 32, "num_experts": 64, "experts_per_token": 2}
LARGE_ROUTE = [[layer, 63] for layer in range(32)]  # of every token


@pytest.fixture(scope="module")
def visited(chromium: Chrome) -> Iterator[tuple[Stub, Page]]:
    with stubbed() as stub:
        chromium.get(stub.url)
        yield stub, Page(driver=chromium)
        chromium.get("about:blank")  # the page would ask a stub that has ended for its health


@pytest.fixture
def stub(visited: tuple[Stub, Page]) -> Stub:
    """The stub, as if it were new."""
    fresh = Stub(url=visited[0].url)
    for one in dataclasses.fields(fresh):
        setattr(visited[0], one.name, getattr(fresh, one.name))
    return visited[0]


@pytest.fixture
def page(stub: Stub, visited: tuple[Stub, Page]) -> Page:
    """The page, just loaded."""
    visited[1].driver.refresh()
    visited[1].wait_until_idle()
    return visited[1]


def loaded(page: Page, stub: Stub, **facts: Any) -> Page:
    """The page of a model with these facts."""
    stub.facts = FACTS | facts
    page.driver.refresh()
    page.wait_until_idle()
    return page


def test_text_is_shown_while_more_of_it_is_generated(page: Page, stub: Stub) -> None:
    shown = threading.Event()
    stub.ours = [tokens(3, 0.1), shown, tokens(7, 0.5, last=True)]
    page["generate"].click()
    try:
        wait_for(lambda: page.texts() == ["word word word "])
        assert not page.idle
    finally:
        shown.set()
    page.wait_until_idle()
    assert page.texts() == ["word " * 10]


# --- failures ---


def test_engine_that_has_failed_is_said_and_what_follows_it_is_learnt(page: Page, stub: Stub) -> None:
    stub.ours = [tokens(3, 0.1), ApiError(503, "the engine has failed (X); start the server again")]
    stub.health = "dead"
    page["generate"].click()
    wait_for(lambda: "failed" in page["server-status"].text)
    says(page["alert"].text, "failed", "X", "start the server")
    assert page.texts() == ["word word word "]
    assert page.all(".lane")[0].get_attribute("data-state") == "failed"
    assert not any(page[name].is_enabled() for name in ("generate", "race", "stop-button"))
    stub.facts, stub.health = FACTS | {"model": "another", "about": "It is new."}, "ready"
    page.wait_until_idle()
    assert page["server-status"].text == "Ready"
    says(page["model-facts"].text, "another")
    assert page["model-facts"].text.endswith(" It is new.")
    assert page["alert"].text == ""


def test_page_waits_for_a_server_that_loads(page: Page, stub: Stub) -> None:
    stub.health = "loading"
    page.driver.refresh()
    wait_for(lambda: page["server-status"].text == "Loading the model")
    stub.health = "ready"
    page.wait_until_idle()


def test_stream_that_is_cut_off_keeps_what_had_arrived(page: Page, stub: Stub) -> None:
    stub.ours = [tokens(3, 0.1), None]
    page.run("generate")
    assert page.texts() == ["word word word "]
    assert page.all(".lane")[0].text.startswith("stub\ncut off\n")
    assert page["experts"].is_displayed()


def test_baseline_that_dies_is_said_and_the_next_race_works(page: Page, stub: Stub) -> None:
    stub.baseline = [RUNNING, tokens(2, 0.2), ApiError(503, "the baseline's process was ended by signal 9")]
    page.run("race")
    says(page["alert"].text, "signal 9")
    says(page["verdict"].text, "not come")
    assert [lane.get_attribute("data-state") for lane in page.all(".lane")] == ["done", "failed"]
    assert page["server-status"].text == "Ready"
    page.driver.get_log("browser")
    ActionChains(page.driver).move_to_element(page.all(".token")[0]).click().perform()
    assert page.driver.get_log("browser") == [], "a race's tokens have no experts to show"
    stub.baseline = Stub(url="").baseline
    page.run("race")
    says(page["verdict"].text, "moejax", "2.0", "slowpoke")
    says(page["verdict"].text, "moejax", "10", "0.50 s", "slowpoke", "10", "1.00 s", "same")


def test_race_waits_for_another_one_and_may_lose(page: Page, stub: Stub) -> None:
    stub.refusals = [ApiError(429, "another race is being run", code="baseline_busy")]
    different = tokens(9, 0.2, last=True)
    different["moejax"]["token_ids"] = [7, 7, 8, *[7] * 6]
    stub.baseline = [RUNNING, tokens(1, 0.1), different]
    page.run("race")
    assert stub.refusals == []
    says(page["verdict"].text, "slowpoke", "2.5", "moejax")
    says(page["verdict"].text, "token 4", "differ")
    says(page["verdict"].text, "once", "moejax bench compare", "3.9 M")


def test_a_large_models_race_is_timed_once_as_well(page: Page, stub: Stub) -> None:
    loaded(page, stub, parameters=46_700_000_000)
    page.run("race")
    says(page["verdict"].text, "once", "moejax bench compare")
    assert " M parameters" not in page["verdict"].text


def test_empty_answer_is_no_race_and_without_a_baseline_there_is_none(page: Page, stub: Stub) -> None:
    stub.ours = [tokens(0, 0.1, last=True)]
    page.run("race")
    says(page["verdict"].text, "empty")
    none = {"name": "none", "available": False, "reason": "the server has no baseline"}
    stub.facts = FACTS | {"baseline": none}
    page.driver.refresh()
    page.wait_until_idle()
    assert not page["race"].is_enabled()
    says(page["race-note"].text, "no race")


# --- focus and speech ---


def test_focus_goes_to_what_can_be_used_next_and_back(page: Page, stub: Stub) -> None:
    stub.refusals = [ApiError(429, "busy", code="baseline_busy")] * 1000  # for as long as the race runs
    page["race"].send_keys(Keys.ENTER)
    wait_for(lambda: page.focused == "stop-button")
    wait_for(lambda: "waits" in page["verdict"].text)
    page["stop-button"].send_keys(Keys.ENTER)
    page.wait_until_idle()
    assert page.focused == "race"
    assert [lane.get_attribute("data-state") for lane in page.all(".lane")] == ["done", "stopped"]
    stub.refusals = []
    page["prompt"].send_keys(Keys.CONTROL, Keys.ENTER)
    page.wait_until_idle()
    assert page.focused == "prompt"


def test_tab_reaches_everything_in_the_order_of_the_page(page: Page) -> None:
    page.run("generate")
    page.js("document.querySelector('.skip').focus()")
    reached = []
    for _ in range(8):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(page.js("return document.activeElement.id || document.activeElement.localName"))
    assert reached == ["prompt", "summary", "generate", "race", "div", "td", "token", "summary"]


def test_little_is_said_aloud(page: Page) -> None:
    live = page.js(
        "return [...document.querySelectorAll('[aria-live], [role=status], [role=log], [role=alert]')].map(e => e.id)"
    )
    assert live == ["alert", "announcer"]
    page.js(
        "window.said = []; new MutationObserver(() => said.push(announcer.textContent))"
        ".observe(document.getElementById('announcer'), {childList: true})"
    )
    page.run("race")
    first, second, end = page.js("return said")
    says(first, "moejax", "now", "slowpoke")
    says(second, "slowpoke", "now")
    says(end, "moejax", "2.0", "slowpoke")


# --- the table of a large model ---


def test_large_table_is_walked_through_by_keyboard_and_told_in_words(page: Page, stub: Stub) -> None:
    loaded(page, stub, **LARGE)
    stub.ours = [tokens(1, 0.1, experts=LARGE_ROUTE), tokens(9, 0.5, experts=LARGE_ROUTE, last=True)]
    page.run("generate")
    says(page["token-route"].text, "10", "expert 0 of layer 0", "100%")
    says(page.cell(0, 0), "Expert 0", "layer 0", "10 of 10")
    for key, cell in (
        (Keys.ARROW_DOWN, (1, 0, 0)),
        (Keys.ARROW_RIGHT, (1, 1, 10)),
        (Keys.END, (1, 31, 0)),
        (Keys.PAGE_DOWN, (9, 31, 0)),
        (Keys.ARROW_RIGHT, (9, 31, 0)),
    ):
        page.driver.switch_to.active_element.send_keys(key)
        expert, layer, count = cell
        says(page["cell"].text, f"Expert {expert}", f"layer {layer}", f"{count} of 10")
    page.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert page.focused == "token", "the table has more than one stop"
    page["token"].send_keys(Keys.ARROW_RIGHT)
    assert page.chosen() == {(layer, e) for layer, ids in enumerate(LARGE_ROUTE) for e in ids}
    assert page["token-route"].text == "Token 2 of 10, “word␣”."  # 32 layers would be too much to listen to
    page.js("document.getElementById('in-words').open = true")
    wait_for(lambda: page.all("#in-words li"))
    words = [item.text for item in page.all("#in-words li")]
    assert words == [f"Layer {layer}: experts {layer}, 63" for layer in range(32)]
    page["unpin"].click()
    says(page.all("#in-words li")[5].text, "Layer 5", "expert 5 100%", "expert 63 100%", "62")


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_page_and_table_fit_the_screen(page: Page, stub: Stub, width: int) -> None:
    loaded(page, stub, **LARGE)
    stub.ours = [tokens(250, 0.5, experts=LARGE_ROUTE, last=True)]
    with page.emulating(width=width):
        page.run("generate")
        assert page.js("return document.documentElement.scrollWidth - innerWidth") <= 0
        assert page.js("return document.getElementById('experts-grid').clientHeight") <= 500
        hidden, row = page.js(
            "const text = document.querySelector('.text'); const row = parseFloat(getComputedStyle(text).lineHeight);"
            "return [text.clientHeight % row, row]"
        )
        assert min(hidden, row - hidden) < 1, "a line of the answer is cut"
        for cell in ((31, 63), (16, 32), (0, 0)):
            page.cell(*cell)
            in_sight = page.js(
                "const {x, y, width, height} = document.activeElement.getBoundingClientRect();"
                "return document.elementFromPoint(x + width / 2, y + height / 2) === document.activeElement"
            )
            assert in_sight, f"the cell {cell} has the focus and is hidden"


# --- colours ---

# Painted into a canvas, so that every notation of a colour becomes red, green and blue.
PAINTED = """
  const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (color) => { context.fillStyle = color; context.fillRect(0, 0, 1, 1);
                           return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3); };
"""
NAMED_COLORS = f"""{PAINTED}
  const value = (name) => {{ const probe = document.body.appendChild(document.createElement('i'));
                             probe.style.color = `var(${{name}})`; const found = getComputedStyle(probe).color;
                             probe.remove(); return rgb(found); }};
  return Object.fromEntries(arguments[0].map((name) => [name, value(name)]));
"""
CELL_COLORS = f"""{PAINTED}
  return [...document.querySelectorAll('.heat td')].map((cell) => {{
    const style = getComputedStyle(cell); return [rgb(style.color), rgb(style.backgroundColor)]; }});
"""
TEXT = 4.5  # WCAG 2.2, level AA
OUTLINE = 3.0  # the same, of what is no text: controls, bars
PAIRS = [
    *[("--ink", back, TEXT) for back in ("--paper", "--surface", "--sunken", "--bad-soft", "--accent-soft")],
    *[("--muted", back, TEXT) for back in ("--paper", "--surface", "--sunken")],
    *[("--accent", back, TEXT) for back in ("--surface", "--sunken")],
    *[("--edge", back, OUTLINE) for back in ("--paper", "--surface", "--sunken")],
    *[(sign, "--paper", OUTLINE) for sign in ("--good", "--accent")],
    ("--on-accent", "--accent", TEXT),
    ("--bad", "--paper", TEXT),
    ("--bad", "--surface", TEXT),
    ("--baseline", "--sunken", OUTLINE),
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_legible_in_light_and_dark(page: Page, stub: Stub, scheme: str) -> None:
    loaded(page, stub, num_layers=1, num_experts=101, experts_per_token=1)
    # Expert e works on e tokens: every heat from 0 to 100 percent.
    stub.ours = [tokens(e, 0.01 * e, experts=[[e]]) for e in range(1, 101)]
    with page.emulating(prefers_color_scheme=scheme):
        page.run("generate")
        colors = page.js(NAMED_COLORS, sorted({name for pair in PAIRS for name in pair[:2]}))
        cells = page.js(CELL_COLORS)
    assert (sum(colors["--paper"]) < 200) == (scheme == "dark")
    for ink, back, least in PAIRS:
        assert contrast(colors[ink], colors[back]) >= least, f"{ink} on {back}"
    assert len({tuple(back) for _, back in cells}) > 80, "the heats look the same"
    for heat, (ink, back) in enumerate(cells):
        assert contrast(ink, back) >= TEXT, f"the number in a cell of heat {heat}%"


def contrast(one: list[int], other: list[int]) -> float:
    """The contrast ratio of WCAG 2.2."""

    def luminance(color: list[int]) -> float:
        linear = [c / 12.92 if (c := value / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for value in color]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
