"""The page in a real browser: typed into, streamed to, raced, and left alone by its server.

The tests go through one visit in their order: the key is given in the first, the server is killed in the last.
"""

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By

from tests.messages import says
from tests.moejax.decoding.tiny_checkpoint import load_tiny
from tests.moejax.serving.page_browser import Page, Server, is_alive, serving, wait_for
from tests.tokenizer_models import byte_level, save

LAYERS, EXPERTS, CHOSEN = 2, 4, 2
TEMPLATE = "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}[assistant]"
PROMPT, TOKENS = "A list of things is", 150  # more than one call of the decode loop makes
LONG = (
    1000  # tokens of a race that is stopped, or whose server dies: it is not over before, however slow the browser is
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("page")
    load_tiny(home / "tiny", num_hidden_layers=LAYERS, num_local_experts=EXPERTS, max_position_embeddings=LONG + 256)
    save(home / "tiny", byte_level(), chat_template=TEMPLATE)
    sizes = ("--max-batch", "1", "--max-seq-len", str(LONG + 256), "--prefill-chunk", "32")
    with serving(home / "tiny", home / "log", "--dtype", "float32", *sizes) as running:
        yield running


@pytest.fixture(scope="module")
def page(server: Server, chromium: Chrome) -> Page:
    chromium.get(server.url)
    return Page(driver=chromium)


def number(text: str) -> float:
    return float(text.replace(",", ""))


def seconds(text: str) -> float:
    value, unit = text.split()
    return float(value) / {"s": 1, "ms": 1000}[unit]


def test_key_is_asked_for_until_it_is_right(page: Page, server: Server) -> None:
    wait_for(page["key-dialog"].is_displayed)
    assert not page["generate"].is_enabled()
    page["key"].send_keys("wrong", Keys.ENTER)
    wait_for(lambda: "not accept" in page["key-heading"].text)
    wait_for(page["key"].is_displayed)
    page["key"].send_keys(server.key, Keys.ENTER)
    wait_for(lambda: page["server-status"].text == "Ready")
    says(page["model-facts"].text, "tiny", "2 layers", "4 experts", "2")
    says(page["race-note"].text, "transformers", "generate()")
    assert page["key-dialog"].get_attribute("open") is None


def test_answer_streams_and_is_the_servers(page: Page, server: Server) -> None:
    page.fill(prompt=PROMPT, max_tokens=TOKENS)
    says(page["settings-summary"].text, f"up to {TOKENS} tokens")
    page.js(
        "window.sizes = []; new MutationObserver(() => sizes.push(document.querySelectorAll('.token').length))"
        ".observe(document.getElementById('lanes'), {childList: true, subtree: true})"
    )
    page.run("generate")
    chunks = server.post("/v1/completions", prompt=PROMPT, max_tokens=TOKENS, temperature=0)
    assert page.texts() == ["".join(chunk["choices"][0]["text"] for chunk in chunks)]
    sizes = page.js("return sizes")
    assert sizes == sorted(sizes) and sizes[-1] == TOKENS
    stats = page.stats()
    assert stats["tokens"] == str(TOKENS)
    assert 0 < seconds(stats["ttft"]) <= seconds(stats["time"])
    assert number(stats["rate"]) == pytest.approx(TOKENS / seconds(stats["time"]), rel=0.06)  # both are rounded
    says(page.spoken, f"{TOKENS} tokens", f"{stats['rate']} tokens per second", "limit")


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
    for layer in range(LAYERS):
        for e in range(EXPERTS):
            count = counted[layer, e]
            says(page.cell(layer, e), f"Expert {e}", f"layer {layer}", f"{count} of {TOKENS}")
            cell = page.driver.switch_to.active_element
            assert cell.text == f"{100 * count / TOKENS:.0f}%"
            heat = page.js("return arguments[0].style.getPropertyValue('--heat')", cell)
            assert float(heat[:-1]) == pytest.approx(100 * count / max(counted.values()), abs=0.51)
    assert counted.total() == TOKENS * LAYERS * CHOSEN
    (layer, e), most = counted.most_common(1)[0]
    says(page["token-route"].text, f"{100 * most / TOKENS:.0f}%")


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
    assert page.spoken == page["token-route"].text
    page["token"].send_keys(Keys.ARROW_RIGHT)
    assert page.chosen() == expected[place + 2]
    spoken = page["token"].get_attribute("aria-valuetext") or ""
    assert spoken == page["token-route"].text
    assert spoken.startswith(f"Token {place + 3} of {TOKENS}, “")
    page["unpin"].click()
    assert page.chosen() == set()
    assert page["token-route"].text.startswith(f"All {TOKENS} tokens. ")
    assert page.focused == "token"


def test_race_has_two_clocks_and_names_the_winner(page: Page) -> None:
    page.run("race")
    assert page["alert"].text == ""
    assert page["verdict"].is_displayed()
    ours, theirs = page.texts()
    assert ours == theirs != ""
    names = [heading.text for heading in page.all(".lane h3")]
    assert names == ["moejax", "transformers"]
    assert page.all(".lane-note")[0].text == "this server, float32, cpu"
    assert re.fullmatch(r"transformers \S+ generate\(\), float32, cpu", page.all(".lane-note")[1].text)
    rates = [number(page.stats(lane)["rate"]) for lane in (0, 1)]
    times = [seconds(page.stats(lane)["time"]) for lane in (0, 1)]
    faster, slower = names if rates[0] >= rates[1] else names[::-1]
    ratio = number(page["verdict"].find_element(By.CLASS_NAME, "ratio").text.rstrip("×"))
    assert ratio == pytest.approx(max(rates) / min(rates), rel=0.1)  # of rounded numbers
    says(page["verdict"].text, faster, slower)
    assert page["verdict"].text.count("same tokens") == 1
    assert page.spoken == page["verdict"].find_element(By.CLASS_NAME, "claim").text
    for lane in (0, 1):
        assert TOKENS / rates[lane] == pytest.approx(times[lane], rel=0.1)
    assert not page["experts"].is_displayed()


def test_stop_ends_the_baseline_and_frees_the_engine(page: Page, server: Server) -> None:
    page.fill(prompt=PROMPT, max_tokens=LONG)
    page["race"].click()
    wait_for(lambda: page.texts()[1:] > [""])
    page["stop-button"].click()
    page.wait_until_idle()
    assert [lane.get_attribute("data-state") for lane in page.all(".lane")] == ["done", "stopped"]
    assert not page["alert"].is_displayed()
    assert 0 < number(page.stats(1)["tokens"]) < LONG
    assert len(server.post("/v1/completions", prompt="x", max_tokens=3, temperature=0)) > 0, "the engine is held"


def test_leaving_in_the_middle_of_a_race_frees_the_baseline_and_the_engine(page: Page, server: Server) -> None:
    page["race"].click()
    wait_for(lambda: page.texts()[1:] > [""])
    page.driver.refresh()
    page.wait_until_idle()  # the key is kept
    page.fill(prompt=PROMPT, max_tokens=8)
    page.run("race")
    assert page["alert"].text == ""
    assert page.texts()[0] == page.texts()[1] != ""


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
    says(page["alert"].text, "max_seq_len")
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
    allowed = re.compile(r"status of (40[01]|429|503) ")  # what the browser itself says of answers that are errors
    complaints = [entry["message"] for entry in page.driver.get_log("browser") if not allowed.search(entry["message"])]
    assert complaints == []


def test_death_of_the_server_is_said_and_leaves_no_baseline(page: Page, server: Server) -> None:
    (baseline,) = server.baseline_pids()
    page.fill(prompt=PROMPT, max_tokens=LONG)
    page["race"].click()
    wait_for(lambda: page.texts()[1:] > [""])
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    wait_for(page["alert"].is_displayed)
    says(page["alert"].text, "stopped")
    wait_for(lambda: page["server-status"].text == "No server")
    assert [lane.get_attribute("data-state") for lane in page.all(".lane")] == ["done", "failed"]
    assert page.texts()[1] != ""
    assert not page["generate"].is_enabled()
    wait_for(lambda: not is_alive(baseline))
