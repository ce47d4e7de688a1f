"""The page in a real Chromium: it shows what the files say, moves when asked to, and speaks to nobody."""

import json
import shutil

import pytest
from browser import Browser, executable
from test_report_run import DIGITS, masks

from truesparse.report import drawing, page, read_run, write_page

pytestmark = pytest.mark.skipif(
    executable() is None, reason="no Chromium on this machine: apt-get install chromium, or name one in TRUESPARSE_CHROMIUM"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def one(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page([read_run(digits)], path)
    return path


@pytest.fixture(scope="module")
def two(digits, convolution, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "two.html"
    write_page([read_run(digits), read_run(convolution)], path)
    return path


@pytest.fixture(autouse=True)
def quiet(browser):
    yield
    assert browser.complaints() == []


def counts(browser):
    found = "Object.fromEntries([...document.querySelectorAll('#counts li')].map(e => [e.dataset.count, Number(e.dataset.number)]))"
    return browser.value(found)


def pixels(browser):
    return browser.value("document.getElementById('mask').toDataURL()")


def to(browser, frame):
    """Moves the slider as a hand would."""
    browser.value(f"(() => {{ const s = document.getElementById('slider'); s.value = {frame}; s.dispatchEvent(new Event('input')); }})()")


def choose(browser, layer):
    choice = f"(() => {{ const s = document.getElementById('layer'); s.value = '{layer}'; s.dispatchEvent(new Event('change')); }})()"
    browser.value(choice)


def colours(browser):
    """How many cells of the mask have each colour, read from its pixels."""
    return browser.value("""(() => {
        const canvas = document.getElementById('mask'), {rows, columns} = shownLayer().drawing;
        const size = Math.round((canvas.width + 1) / columns), found = {};
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', {willReadFrequently: true});
        copy.drawImage(canvas, 0, 0);
        const data = copy.getImageData(0, 0, canvas.width, canvas.height).data;
        for (let row = 0; row < rows; row += 1) for (let column = 0; column < columns; column += 1) {
            const at = 4 * (row * size * canvas.width + column * size);
            const name = [...data.slice(at, at + 3)].map(v => v.toString(16).padStart(2, '0')).join('');
            found[name] = (found[name] ?? 0) + 1;
        }
        return found;
    })()""")


def test_nothing_leaves_the_page(browser, one, two):
    for path in (one, two):
        browser.open(path)
        assert browser.requests() == [path.resolve().as_uri()]
        text = path.read_text()
        assert "src=" not in text.replace("default-src", "")
        assert "url(" not in text
        assert "@import" not in text


@pytest.mark.parametrize("layer", DIGITS)
def test_counts_are_those_of_the_files(browser, one, digits, layer):
    browser.open(one)
    choose(browser, layer)
    rows, columns = DIGITS[layer]
    by_hand = [mask for _, mask in masks(digits, "sparse", layer, columns)]
    assert browser.value("Number(document.getElementById('slider').max)") == len(by_hand) - 1 == 10
    for frame in (0, 1, 4, 10):
        to(browser, frame)
        before, after = by_hand[max(frame - 1, 0)], by_hand[frame]
        expected = {
            "dropped": len(before - after),
            "grown": len(after - before),
            "active": len(before & after),
            "absent": rows * columns - len(before | after),
        }
        assert counts(browser) == expected
        # These layers are drawn whole, so that the picture itself has as many cells of each colour.
        drawn = {"ff4b4b": expected["dropped"], "30d56b": expected["grown"], "ffffff": expected["active"], "000000": expected["absent"]}
        assert colours(browser) == {colour: count for colour, count in drawn.items() if count}


def test_cells_are_where_the_connections_are(browser, one, digits):
    browser.open(one)
    choose(browser, "3")
    to(browser, 7)
    mask = masks(digits, "sparse", "3", 128)[7][1]
    present = browser.value("[...cellsAt(shownLayer().drawing, 7)].flatMap((cell, place) => cell === 1 || cell === 3 ? [place] : [])")
    assert set(present) == mask


def test_the_slider_moves_everything(browser, one):
    browser.open(one)
    to(browser, 1)
    pictures = {pixels(browser)}
    cursor = "document.querySelector('#life .cursor').getAttribute('x1')"
    places = {browser.value(cursor)}
    said = {browser.value("document.getElementById('where').textContent")}
    for frame in (5, 10):
        to(browser, frame)
        pictures.add(pixels(browser))
        places.add(browser.value(cursor))
        said.add(browser.value("document.getElementById('where').textContent"))
    assert len(pictures) == len(places) == len(said) == 3
    assert "step 100, epoch 2.22, 10 of 10" in said


def test_the_keyboard(browser, one):
    browser.open(one)
    to(browser, 3)
    browser.value("document.activeElement.blur()")
    browser.press("ArrowRight")
    assert browser.value("state.frame") == 4
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")
    assert browser.value("state.frame") == 2
    height = browser.value("(scrollTo(0, 40), scrollY)")
    browser.press(" ", "Space", " ")
    assert browser.value("document.getElementById('play').textContent") == "Pause"
    browser.wait("state.frame > 3")
    assert browser.value("scrollY") == height, "the browser's own meaning of the key is kept from it"
    browser.press(" ", "Space", " ")
    stopped = browser.value("state.frame")
    assert browser.value("document.getElementById('play').textContent") == "Play"
    browser.value("document.getElementById('slider').focus()")
    browser.press("ArrowLeft")
    assert browser.value("state.frame") == stopped - 1, "one step, not one of the slider's and one of the page's"
    browser.value("document.getElementById('play').focus()")
    browser.press("Enter", text="\r")
    assert browser.value("state.timer !== null")
    browser.wait("state.frame === 10 && state.timer === null")


def test_everything_can_be_reached_by_tab(browser, one):
    browser.open(one)
    browser.value("document.activeElement.blur()")
    reached = set()
    for _ in range(10):
        browser.press("Tab")
        reached.add(browser.value("document.activeElement.id || document.activeElement.textContent.slice(0, 20)"))
        outline = browser.value("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", f"{reached} shows its focus"
    assert {"palette", "theme", "epochs", "seconds", "layer", "play", "slider", "1", "3", "5"} <= reached
    unnamed = browser.value(
        "[...document.querySelectorAll('main svg[role=img], canvas, input, select')].filter(e => !e.getAttribute('aria-label')).length"
    )
    assert unnamed == 0


def test_a_layer_is_chosen_in_the_table(browser, one):
    browser.open(one)
    browser.click("tr[data-layer='5']")
    assert browser.value("shownLayer().name") == "5"
    assert browser.value("document.getElementById('layer').value") == "5"
    assert browser.value("document.getElementById('life-title').textContent") == "How the connections of layer 5 live"


def test_summary_and_heat_map(browser, one, digits):
    browser.open(one)
    results = {line["variant"]: line for line in json.loads((digits / "results.json").read_text())["variants"]}
    for variant, line in results.items():
        text = browser.value(f"document.querySelector('tr[data-variant={variant}]').innerText")
        assert f"{100 * line['test_accuracy']:.2f}\u00a0%" in text
        assert f"{line['connections']:,}" in text
        assert f"{line['test_loss']:.4f}" in text
        measured = [json.loads(one) for one in (digits / "metrics.jsonl").read_text().splitlines()]
        last = [one for one in measured if one["variant"] == variant][-1]
        assert f"{last['flops']['inference'] / 1e3:.3g} k" in text
        assert f"{last['energy']['inference'] / 1e6:.3g} µJ" in text or f"{last['energy']['inference'] / 1e3:.3g} nJ" in text
    last = masks(digits, "sparse", "1", 64)[-1][1]
    to(browser, 10)
    assert browser.value("Number(document.getElementById('unseen').dataset.unseen)") == 64 - len({key % 64 for key in last})
    heat = browser.value("shownRun().layers[0].drawing.frames.at(-1).heat")
    assert heat == [sum(key % 64 == pixel for key in last) for pixel in range(64)]


def test_two_looks_and_two_palettes(browser, one):
    background = "getComputedStyle(document.body).backgroundColor"
    browser.open(one, prefers_color_scheme="light")
    light = browser.value(background)
    browser.click("#theme")
    dark = browser.value(background)
    browser.open(one, prefers_color_scheme="dark")
    assert browser.value(background) == dark != light
    to(browser, 1)
    before = colours(browser)
    browser.click("#palette")
    after = colours(browser)
    assert {"ff4b4b", "30d56b"} <= before.keys()
    assert {"e69f00", "56b4e9"} <= after.keys()
    assert (after["e69f00"], after["56b4e9"]) == (before["ff4b4b"], before["30d56b"])


def test_two_runs(browser, two):
    browser.open(two)
    assert browser.value("[...document.querySelectorAll('#summary tr.run')].map(e => e.innerText)") == ["digits", "tiny"]
    browser.value("pickRun(1)")
    assert browser.value("shownLayer().title").startswith("linear, 384")
    assert browser.value("document.querySelectorAll('#learning figure')[0].querySelectorAll('path.line').length") == 2 * 4
    assert "digits" in browser.value("document.getElementById('settings').innerText")
    # One of these layers is in both runs by its name: both are drawn.
    browser.value("pickLayer('5')")
    survival = "document.querySelectorAll('#life figure')[1].querySelectorAll('path.line').length"
    assert browser.value(survival) == 2
    browser.value("pickLayer('0')")
    assert browser.value(survival) == 1


def test_large_layers_are_sampled_and_say_so(browser, convolution, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "MOST_ROWS", 100)
    monkeypatch.setattr(drawing, "MOST_COLUMNS", 200)
    monkeypatch.setattr("truesparse.report.content.MOST_FRAMES", 2)
    write_page([read_run(convolution)], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    choose(browser, "3")
    to(browser, 1)
    said = browser.value("document.getElementById('sampled').textContent")
    assert "a sample of 100 rows (one of every 3) and 192 columns (one of every 2). Counts are of the whole layer." in said
    assert "Each step of the slider is the net change of 2 updates." in said
    by_hand = [mask for _, mask in masks(convolution, "sparse", "3", 384)]
    before, after = by_hand[0], by_hand[2]
    assert counts(browser)["dropped"] == len(before - after)
    assert counts(browser)["active"] == len(before & after)
    drawn = drawing.grid((300, 384), 1e9)
    cells = {(row, column) for row in drawn.rows.tolist() for column in drawn.columns.tolist()}
    assert sum(colours(browser).get(colour, 0) for colour in ("ffffff", "30d56b")) == sum(divmod(key, 384) in cells for key in after)


def test_a_page_of_a_run_without_updates(browser, copied, tmp_path):
    for variant in ("masked", "sparse"):
        shutil.rmtree(copied / variant / "updates")
    (copied / "layers.json").unlink()
    (copied / "results.json").unlink()
    write_page([read_run(copied)], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert "updates within an epoch are not known" in browser.value("document.querySelector('.note').innerText")
    assert browser.value("Number(document.getElementById('slider').max)") == 3


def test_a_run_of_a_dense_network(browser, train, tmp_path):
    write_page([read_run(train("digits-mlp", tmp_path / "run", epochs=1, variants=("dense",)))], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert browser.value("document.getElementById('masks')") is None
    assert browser.value("document.querySelectorAll('#learning svg').length") == 4


def test_narrow_and_print(browser, one, two, tmp_path):
    for path in (one, two):
        browser.open(path, width=390)
        assert browser.value("document.documentElement.scrollWidth") == 390
    browser.open(one)
    browser.printed(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_names_are_never_read_as_html(browser, copied, tmp_path):
    config = json.loads((copied / "config.json").read_text())
    config["task"] = "<img src=x onerror=alert(1)>&amp;.py"
    config["algorithm"] = "<b>bold</b>"
    (copied / "config.json").write_text(json.dumps(config))
    write_page([read_run(copied)], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert browser.value("document.querySelectorAll('main img, .facts b').length") == 0
    assert browser.value("document.title") == "<img src=x onerror=alert(1)>&amp; · truesparse report"
    assert "<b>bold</b>" in browser.value("document.querySelector('.facts').textContent")


def test_size(digits):
    with pytest.raises(ValueError, match="expected at least one run"):
        page([])
    assert len(page([read_run(digits)])) < 200_000
