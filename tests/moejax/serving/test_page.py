"""The page in a real browser: typed into, streamed to, raced, and left alone by its server.

The tests go through one visit in their order: the key is given in the first, the server is killed in the last.
"""

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator

import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

from tests.moejax.decoding.tiny_checkpoint import load_tiny
from tests.moejax.serving.page_browser import Page, Server, browser, is_alive, serving, wait_for
from tests.tokenizer_models import byte_level, save

LAYERS, EXPERTS, CHOSEN = 2, 4, 2
TEMPLATE = "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}[assistant]"
PROMPT, TOKENS = "A list of things is", 150  # more than one call of the decode loop makes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("page")
    load_tiny(home / "tiny", num_hidden_layers=LAYERS, num_local_experts=EXPERTS)
    save(home / "tiny", byte_level(), chat_template=TEMPLATE)
    sizes = ("--max-batch", "2", "--max-seq-len", "256", "--prefill-chunk", "32")
    with serving(home / "tiny", home / "log", "--dtype", "float32", *sizes) as running:
        yield running


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        driver.get(server.url)
        yield Page(driver=driver)


def number(text: str) -> float:
    return float(text.replace(",", ""))


def seconds(text: str) -> float:
    value, unit = text.split()
    return float(value) / {"s": 1, "ms": 1000}[unit]


def test_key_is_asked_for_until_it_is_right(page: Page, server: Server) -> None:
    wait_for(page["key-dialog"].is_displayed)
    assert not page["generate"].is_enabled()
    page["key"].send_keys("wrong", Keys.ENTER)
    wait_for(lambda: page["key-heading"].text == "The server does not accept this key")
    wait_for(page["key"].is_displayed)
    page["key"].send_keys(server.key, Keys.ENTER)
    wait_for(lambda: page["server-status"].text == "Ready")
    assert page["model-facts"].text == "tiny · 2 layers · 2 of 4 experts per token · up to 256 tokens"
    assert "then on transformers (its generate() on the same weights)" in page["race-note"].text


def test_answer_streams_and_is_the_servers(page: Page, server: Server) -> None:
    page.fill(prompt=PROMPT, max_tokens=TOKENS)
    assert page["settings-summary"].text == f"greedy · up to {TOKENS} tokens"
    page.js(
        "window.sizes = []; new MutationObserver(() => sizes.push(document.querySelectorAll('.token').length))"
        ".observe(document.getElementById('lanes'), {childList: true, subtree: true})"
    )
    page.run("generate")
    chunks = server.post("/v1/completions", prompt=PROMPT, max_tokens=TOKENS, temperature=0)
    assert page.texts() == ["".join(chunk["choices"][0]["text"] for chunk in chunks)]
    sizes = page.js("return sizes")
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 2, "the text came at once"
    stats = page.stats()
    assert stats["tokens"] == str(TOKENS)
    assert 0 < seconds(stats["ttft"]) <= seconds(stats["time"])
    assert number(stats["rate"]) == pytest.approx(TOKENS / seconds(stats["time"]), rel=0.06)  # both are rounded
    assert page["announcer"].get_attribute("textContent") == (
        f"Finished: {TOKENS} tokens, {stats['rate']} tokens per second; the limit of tokens is reached."
    )


def test_stop_text_ends_the_answer(page: Page, server: Server) -> None:
    whole = page.texts()[0]
    stop = next(character for character in whole[5:] if character.isalnum() and character.isascii())
    page.fill(stop=stop)
    assert page["settings-summary"].text.endswith(f"stop at {stop}")
    page.run("generate")
    assert page.texts() == [whole[: whole.index(stop)]]
    page.fill(stop=Keys.BACKSPACE)
    page.run("generate")
    assert page.texts() == [whole]


def routes(server: Server) -> list[list[list[int]]]:
    """[tokens, L, A], as the server tells whoever asks for it."""
    chunks = server.post("/v1/completions", prompt=PROMPT, max_tokens=TOKENS, temperature=0, return_routed_experts=True)
    return [token for chunk in chunks for token in chunk["moejax"]["routed_experts"]]


def test_table_of_experts_counts_what_the_tokens_used(page: Page, server: Server) -> None:
    counted = Counter((layer, e) for token in routes(server) for layer, chosen in enumerate(token) for e in chosen)
    titles = [cell.get_attribute("title") or "" for cell in page.all(".heat td")]
    shown = {}
    for title in titles:
        layer, expert, count, of = map(int, re.findall(r"\d+", title))
        assert of == TOKENS
        shown[layer, expert] = count
    assert shown == {(layer, e): counted[layer, e] for layer in range(LAYERS) for e in range(EXPERTS)}
    assert sum(shown.values()) == TOKENS * LAYERS * CHOSEN
    heats = {
        title: page.js("return arguments[0].style.getPropertyValue('--heat')", cell)
        for title, cell in zip(titles, page.all(".heat td"), strict=True)
    }
    assert max(heats.values(), key=lambda heat: float(heat[:-1])) == "100%"


def test_token_shows_its_experts_by_pointer_and_by_keyboard(page: Page, server: Server) -> None:
    expected = [{(layer, e) for layer, chosen in enumerate(token) for e in chosen} for token in routes(server)]
    spans = page.all(".token")
    place = next(i for i, span in enumerate(spans) if i > 3 and span.text.strip())
    pointer = ActionChains(page.driver)
    pointer.move_to_element(spans[place]).perform()
    wait_for(lambda: page.chosen() == expected[place])
    pointer.move_to_element(page["experts-heading"]).perform()
    wait_for(lambda: page.chosen() == set())
    spans[place].click()
    assert page.chosen() == expected[place]
    page.all(".text")[0].send_keys(Keys.ARROW_RIGHT)
    assert page.chosen() == expected[place + 1]
    assert page["announcer"].get_attribute("textContent") == page["token-route"].text
    page["token"].send_keys(Keys.ARROW_RIGHT)
    assert page.chosen() == expected[place + 2]
    spoken = page["token"].get_attribute("aria-valuetext") or ""
    assert spoken == page["token-route"].text
    assert spoken.startswith(f"Token {place + 3} of {TOKENS}, “")
    page["unpin"].click()
    assert (page.chosen(), page["token-route"].text) == (set(), f"The table shows all {TOKENS} tokens.")


def test_race_has_two_clocks_and_names_the_winner(page: Page) -> None:
    page.run("race")
    assert page["alert"].text == ""
    assert page["verdict"].is_displayed()
    ours, theirs = page.texts()
    assert ours == theirs != ""
    names = [heading.text for heading in page.all(".lane h3")]
    assert names == ["moejax", "transformers"]
    assert re.fullmatch(r"transformers \S+ generate\(\), float32, cpu", page.all(".lane-note")[1].text)
    rates = [number(page.stats(lane)["rate"]) for lane in (0, 1)]
    times = [seconds(page.stats(lane)["time"]) for lane in (0, 1)]
    faster, slower = names if rates[0] >= rates[1] else names[::-1]
    ratio = number(page["verdict"].find_element(By.CLASS_NAME, "ratio").text.rstrip("×"))
    assert ratio == pytest.approx(max(rates) / min(rates), rel=0.1)  # of rounded numbers
    assert f"{faster} was " in page["verdict"].text
    assert f" times as fast as {slower}." in page["verdict"].text
    assert "The same tokens." in page["verdict"].text
    for lane in (0, 1):
        assert TOKENS / rates[lane] == pytest.approx(times[lane], rel=0.1)
    assert not page["experts"].is_displayed()


def test_stop_ends_the_baseline_and_frees_the_engine(page: Page, server: Server) -> None:
    page.fill(prompt=PROMPT, max_tokens=200)
    page["race"].click()
    wait_for(lambda: page.texts()[1:] > [""])
    page["stop-button"].click()
    page.wait_until_idle()
    assert [lane.get_attribute("data-state") for lane in page.all(".lane")] == ["done", "stopped"]
    assert not page["alert"].is_displayed()
    assert 0 < int(page.stats(1)["tokens"]) < 200
    assert len(server.post("/v1/completions", prompt="x", max_tokens=3, temperature=0)) > 0, "the engine is held"


def test_chat_goes_through_the_template(page: Page, server: Server) -> None:
    page.fill(prompt="Hello", max_tokens=8)
    page.field("chat").click()
    page["prompt"].send_keys(Keys.CONTROL, Keys.ENTER)
    wait_for(lambda: page.texts() != [""] and page.idle)
    page.field("chat").click()
    messages = [{"role": "user", "content": "Hello"}]
    chunks = server.post("/v1/chat/completions", messages=messages, max_tokens=8, temperature=0)
    assert page.texts() == ["".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)]


def test_mistakes_are_said_where_they_are(page: Page) -> None:
    page.fill(temperature=-1)
    page["generate"].click()
    assert page["alert"].text.startswith("Temperature: ")
    assert page.driver.switch_to.active_element == page.field("temperature")
    assert page.field("temperature").get_attribute("aria-invalid") == "true"
    page.fill(temperature=0, prompt="long " * 300)
    page.run("generate")
    assert page["alert"].text.startswith("The server could not do this: ")
    assert "max_seq_len" in page["alert"].text
    page.fill(prompt=PROMPT)
    page.run("generate")
    assert not page["alert"].is_displayed()


def test_everything_has_a_name_and_nothing_comes_from_elsewhere(page: Page, server: Server) -> None:
    unnamed = page.js(
        "return [...document.querySelectorAll('input, textarea, button')].filter(one => "
        "!(one.labels?.length || one.ariaLabel || one.textContent.trim())).map(one => one.outerHTML)"
    )
    assert unnamed == []
    sources = page.js("return performance.getEntriesByType('resource').map(one => one.name)")
    assert len(sources) > 8
    assert [source for source in sources if not source.startswith(server.url)] == []
    allowed = re.compile(r"status of 40[01] ")  # what the browser itself says of answers that are errors
    complaints = [entry["message"] for entry in page.driver.get_log("browser") if not allowed.search(entry["message"])]
    assert complaints == []


@pytest.mark.parametrize("width", [320, 390, 768])
def test_page_fits_narrow_screens(page: Page, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    overflow = page.js("return document.documentElement.scrollWidth - innerWidth")
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert overflow <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_light_and_dark(page: Page, scheme: str) -> None:
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    # Painted into a canvas, so that every notation of a colour becomes red, green and blue.
    script = """
      const context = document.createElement('canvas').getContext('2d');
      const rgb = (color) => { context.fillStyle = color; context.fillRect(0, 0, 1, 1);
                               return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3); };
      const value = (name) => { const probe = document.body.appendChild(document.createElement('i'));
                                probe.style.color = `var(${name})`; const found = getComputedStyle(probe).color;
                                probe.remove(); return rgb(found); };
      return Object.fromEntries(arguments[0].map((name) => [name, value(name)]));
    """
    pairs = [
        *[("--ink", back) for back in ("--paper", "--surface", "--sunken", "--bad-soft", "--accent-soft")],
        *[("--muted", back) for back in ("--paper", "--surface", "--sunken")],
        ("--on-accent", "--accent"),
    ]
    colors = page.js(script, sorted({name for pair in pairs for name in pair}))
    assert (sum(colors["--paper"]) < 200) == (scheme == "dark")
    for ink, paper in pairs:
        assert contrast(colors[ink], colors[paper]) >= 4.5, f"{ink} on {paper}"  # WCAG 2.2, level AA


def contrast(one: list[int], other: list[int]) -> float:
    """The contrast ratio of WCAG 2.2."""

    def luminance(color: list[int]) -> float:
        linear = [c / 12.92 if (c := value / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for value in color]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_death_of_the_server_is_said_and_leaves_no_baseline(page: Page, server: Server) -> None:
    (baseline,) = server.baseline_pids()
    page.fill(prompt=PROMPT, max_tokens=200)
    page["race"].click()
    wait_for(lambda: page.texts()[1:] > [""])
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    wait_for(page["alert"].is_displayed)
    assert page["alert"].text.startswith("The server stopped answering. What had arrived is kept below")
    assert page["server-status"].text == "No server"
    assert [lane.get_attribute("data-state") for lane in page.all(".lane")] == ["done", "failed"]
    assert page.texts()[1] != ""
    wait_for(lambda: not is_alive(baseline), 10)
    page.run("generate")
    assert page["alert"].text.startswith("The server stopped answering.")
