"""The report in a real browser (Debian's package chromium): what can be clicked, on a desk and on a phone, alone."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from leaf_diffusion.reports import write_comparison, write_report
from leaf_diffusion.reports.leaderboard import write_leaderboard
from leaf_diffusion.reports.metrics import TEXT_ACCURACY
from leaf_diffusion.reports.pages.experiment import write_page
from leaf_diffusion.reports.pages.zero_shot import zero_shot_page
from leaf_diffusion.runs import ResultRow, RunSpec
from leaf_diffusion.runs.experiment_records import ClassifiedText, SearchedText

Make = Callable[..., Path]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)
EVIL = ["<img src=http://example.invalid/x.png>", "<script>document.title='run'</script>", "a \u202ecat", "x" * 3000]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Visit:
    """A page, with what it said to the console and what it asked for beyond itself."""

    def __init__(self, browser: Browser, path: Path, width: int = 1280) -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900})
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def prompts(self) -> list[str]:
        """The visible prompts, from top to bottom."""
        shown = [each for each in self.page.locator(".prompt").all() if each.is_visible()]
        places = [((box := each.bounding_box()) and box["y"], each.locator("h3").inner_text()) for each in shown]
        return [text for _, text in sorted(places, key=lambda place: place[0] or 0)]

    def quiet(self) -> None:
        assert not self.said
        assert [url for url in self.asked if not url.startswith(("file:", "data:"))] == []

    def overflow(self) -> int:
        """Pixels that the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


def test_the_gallery_sorts_and_filters(browser: Browser, make_run: Make) -> None:
    words = ("cat", "boat", "house", "key", "bell", "fish", "cup", "star", "moon", "tree")
    visit = Visit(browser, write_report(make_run(prompts=[f"a red {word}" for word in words])))
    page, first = visit.page, visit.prompts()
    assert len(first) == 6
    page.check("#many-all")
    everything = visit.prompts()
    assert everything[:6] == first
    assert len(everything) == 10
    page.check("#order-given")
    assert visit.prompts() == [f"a red {word}" for word in words]
    page.check("#order-gain")
    gained = visit.prompts()
    assert sorted(gained) == sorted(everything)
    kinds = {}
    for kind in ("saved", "lost", "both"):
        page.check(f"#only-{kind}")
        kinds[kind] = visit.prompts()
        assert page.locator(".note.none").is_visible() == (not kinds[kind])
    assert sum(map(len, kinds.values())) == 10
    assert gained[: len(kinds["saved"])] and set(gained[: len(kinds["saved"])]) == set(kinds["saved"])
    page.check("#only-all")
    page.uncheck("#show-e0")
    assert page.locator(".gallery .e0").first.is_hidden()
    assert page.locator(".gallery .e1").first.is_visible()
    page.uncheck("#show-s1")
    assert page.locator(".gallery .s1").first.is_hidden()
    visit.quiet()


def test_images_zoom_and_the_keyboard_suffices(browser: Browser, make_run: Make) -> None:
    visit = Visit(browser, write_report(make_run(n=3)))
    image = visit.page.locator(".gallery .e0 img").first
    visit.page.locator("#size-middle").focus()
    before = image.bounding_box()
    visit.page.keyboard.press("ArrowRight")
    after = image.bounding_box()
    assert before and after and after["width"] > 1.5 * before["width"]
    visit.page.locator("#show-e0").focus()
    visit.page.keyboard.press("Space")
    assert image.is_hidden()
    visit.quiet()


@pytest.mark.parametrize("width", [1280, 360])
def test_hostile_prompts_run_nothing_and_the_page_fits(browser: Browser, make_run: Make, width: int) -> None:
    visit = Visit(browser, write_report(make_run(prompts=EVIL)), width)
    assert visit.page.title().startswith("Robustness report")
    assert visit.overflow() <= 0
    assert visit.page.locator(".prompt script").count() == 0
    visit.quiet()


@pytest.mark.parametrize("width", [1280, 360])
def test_two_runs_are_compared(browser: Browser, make_run: Make, width: int) -> None:
    prompts = [f"a {colour} {noun}" for colour in ("red", "blue", "green") for noun in ("cat", "boat", "key", "star")]
    weak = make_run("weak", prompts=prompts, encoders={"original": 0.1, "leaf": 0.1})
    strong = make_run("strong", prompts=prompts, encoders={"original": 0.1, "leaf": 0.98})
    visit = Visit(browser, write_comparison(weak, strong), width)
    assert visit.overflow() <= 0
    line = visit.page.locator("tr", has=visit.page.locator("th", has_text="leaf, attacked on itself, k=1")).first
    assert "good" in (line.locator("td").nth(2).get_attribute("class") or "")
    assert visit.page.locator("article", has_text="leaf, attacked on itself").count() > 0
    visit.quiet()


PLACES = """words => {
    const found = {}, walk = document.createTreeWalker(document.querySelector(WHERE), NodeFilter.SHOW_TEXT);
    for (let node = walk.nextNode(); node; node = walk.nextNode())
        for (const word of words) {
            const at = node.data.indexOf(word);
            if (at < 0 || word in found) continue;
            const range = document.createRange();
            range.setStart(node, at); range.setEnd(node, at + word.length);
            found[word] = range.getBoundingClientRect().left;
        }
    return found;
}"""


def places(page: Page, where: str, *words: str) -> list[float]:
    """How far from the left each word of an element begins."""
    found = page.evaluate(PLACES.replace("WHERE", repr(where)), list(words))
    return [found[word] for word in words]


def test_marks_of_direction_reorder_nothing_and_are_seen(browser: Browser, make_run: Make) -> None:
    prompts = ["a \u202ecat\u202c sits", "\u2067red\u2069 on\u200b\x1b blue", "שלום 12"]
    labels = {"אבג": 0.1, "דהו": 0.9, "x\u202ey": 0.5}
    visit = Visit(browser, write_report(make_run(prompts=prompts, encoders=labels)))
    page = visit.page
    for number, (prompt, word) in enumerate(zip(prompts, ("sits", "blue"), strict=False)):
        page.locator(".gallery .prompt", has_text=word).evaluate("(node, name) => node.id = name", f"prompt{number}")
        title = page.locator(f"#prompt{number} h3")
        assert title.evaluate("node => node.textContent") == prompt  # whole, to be copied
    left = places(page, "#prompt0 h3", "a ", "c", "at", "sits")
    assert left == sorted(left)
    left = places(page, "#prompt1 h3", "red", "on", "blue")
    assert left == sorted(left)
    marks = page.locator("#prompt1 h3 .code")
    assert [mark.get_attribute("data-code") for mark in marks.all()] == ["\\u2067", "\\u2069", "\\u200b", "\\x1b"]
    for mark in marks.all():
        shown = mark.evaluate("node => getComputedStyle(node, '::before').content")
        assert mark.get_attribute("data-code", timeout=100) in shown.replace("\\\\", "\\")
        box = mark.bounding_box()
        assert box and box["width"] > 10
    # a difference is read from left to right whatever the letters of its encoders
    column = page.locator("table.differences thead th", has_text="−").first
    column.evaluate("node => node.id = 'pair'")
    first, minus, second = column.evaluate("node => node.textContent").partition("−")
    left = places(page, "#pair", first.strip("\u2068\u2069 "), minus, second.strip("\u2068\u2069 "))
    assert left == sorted(left)
    # an encoder's label beside its figures, in the sentence that leads
    page.locator("h1").evaluate("node => node.id = 'lead'")
    text = page.locator("#lead").inner_text()
    assert "דהו" in text and "\u202e" not in text
    left = places(page, "#lead", "“", "דהו", "”", "keeps")
    assert left == sorted(left)
    assert "\u202e" not in str(page.locator("nav, .controls, table").all_inner_texts())
    assert visit.overflow() <= 0
    visit.quiet()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_an_experiments_page_keeps_its_order_whatever_the_letters_of_its_encoders(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    labels = ["אבג", "דהו", "x\u202ey"]
    rows, records = [], []
    for number, label in enumerate(labels):
        for protocol, k in (("clean", 0), ("adaptive", 1)):
            attacked = {"attack": "charmer", "constraint": "none"} if k else {"attack": None, "constraint": None}
            fixed = {
                "protocol": protocol,
                "k": k,
                "metric": TEXT_ACCURACY.key,
                "n": 4,
                "seeds": 1,
                "mean": 0.5 + number / 10,
            }
            around = {"source": label if k else None, "ci_low": 0.2, "ci_high": 0.9}
            for baseline in (None, *labels[:number]):
                row = {"encoder": label, "baseline": baseline, **attacked, **fixed, **around}
                rows.append(ResultRow.model_validate(row))
        tried = SearchedText(attack="charmer", n_positions=20, k=1, constraint="none", perturbed="a czt", queries=9,
                             held=number > 0, truncated=False)  # fmt: skip
        records.append(ClassifiedText(number=0, encoder=label, attacks=[tried], right=True, said="cat", text="a cat",
                                      exact=[]))  # fmt: skip
    made = zero_shot_page(rows, records, {"texts": 1, "classes": 2, "truncated": 0}, labels, "דגים 12")
    visit = Visit(browser, write_page(tmp_path, made, RunSpec({"experiment": "zero-shot-text"}), {}), width)
    page = visit.page
    if width > 1000:  # on a phone these lines break
        # the sentence that leads: each label before its own figure
        left = places(page, "h1", "Right", "אבג", "50%", "דהו", "60%")
        assert left == sorted(left)
        column = page.locator("table.differences thead th", has_text="−").first
        column.evaluate("node => node.id = 'pair'")
        left = places(page, "#pair", "דהו", "−", "אבג")
        assert left == sorted(left)
        # a label, then what became of its text
        side = page.locator(".side", has_text="אבג")
        side.evaluate("node => node.id = 'side'")
        left = places(page, "#side", "אבג", "✗ ")
        assert left == sorted(left)
    assert "\u202e" not in page.locator("body").inner_text()
    assert "x\\u202ey" in page.locator("h1").inner_text()
    assert visit.overflow() <= 0
    visit.quiet()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_leaderboard_sorts_by_any_column_and_by_the_keyboard(browser: Browser, make_run: Make, width: int) -> None:
    path = make_run(encoders={"a": 0.9, "b": 0.1, "c": 0.5})
    visit = Visit(browser, write_leaderboard([path], path / "board.html", ["scene_accuracy"]), width)
    page = visit.page

    def order() -> list[str]:
        return [row.inner_text() for row in page.locator("tbody th").all()]

    def numbers(column: int) -> list[float]:
        return [
            float(cell.get_attribute("data-number") or "nan")
            for cell in page.locator(f"tbody td:nth-child({column})").all()
        ]

    best, heads = order(), page.locator("thead button")
    assert best[0] == "a"
    heads.nth(0).click()
    assert order() == ["c", "b", "a"]
    heads.nth(0).press("Enter")
    assert order() == ["a", "b", "c"]
    assert page.locator("thead th").nth(0).get_attribute("aria-sort") == "ascending"
    heads.nth(2).click()
    assert numbers(3) == sorted(numbers(3), reverse=True)
    heads.nth(2).click()
    assert numbers(3) == sorted(numbers(3))
    assert visit.overflow() <= 0
    visit.quiet()
