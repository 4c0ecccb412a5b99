"""Looks at the status page as a person's browser does, and says what is wrong with it.

    page.py load|busy|actions|token|declined|changed|many|outage URL DIRECTORY [TOKEN]

Pictures go to the directory. `load`: a volume `disk` of 64 MiB whose first quarter is durable and whose last block is
written; one client uses it. `busy`: a client reads, writes and flushes `disk` all the time. `actions`: as `load`, but nothing is
committed or folded unasked, everybody may read, and changes need the token. `token`, `declined`, `changed`: reading needs the
token too. `many`: 42 volumes, of which `closed-1` and `closed-2` are not open. `outage`: the store of `disk` answers nothing,
and a client waits for a FLUSH.
"""
import re
import sys

from playwright.sync_api import expect, sync_playwright

scenario, url, directory, *token = sys.argv[1:]

# Text whose contrast with what is behind it is less than 4.5 to 1 (WCAG 2.2, 1.4.3), which disabled controls need not have.
FAINT = """() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => { const [r, g, b] = rgb.map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (of) => { for (let at = of; at; at = at.parentElement) { const c = parts(getComputedStyle(at).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const of = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !of.checkVisibility() || of.disabled || of.closest('template, script')) continue;
    const [a, b] = [light(parts(getComputedStyle(of).color)), light(behind(of))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${walker.currentNode.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""

# How many cells of the map have the colour of each entry of the legend; -1 where one has another colour.
MAP = """() => {
  const canvas = document.querySelector('#map canvas');
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  const kinds = new Map([...document.querySelectorAll('.legend i')].map((of) =>
    [getComputedStyle(of).backgroundColor.match(/\\d+/g).join(), of.className]));
  return Array.from({length: data.length / 4}, (_, n) => kinds.get(data.slice(4 * n, 4 * n + 3).join()) ?? 'unknown');
}"""


class Look:
    """A browser's page, which collects what goes wrong."""

    def __init__(self, browser, scheme="light", width=1100, height=760, errors=()):
        self.page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": height})
        self.said, self.asked, self.allowed = [], [], errors
        self.page.on("console", lambda message: self.said.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)

    def sound(self, picture):
        self.page.screenshot(path=f"{directory}/{picture}.png")
        faint = self.page.evaluate(FAINT)
        assert not faint, f"{picture}: too little contrast: {faint}"
        wide = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{picture} is {wide} pixels wider than the screen"
        said = [text for text in self.said if not any(allowed in text for allowed in self.allowed)]
        assert not said, f"the console says {said}"
        assert all(address.startswith(url) for address in self.asked), f"asked for {self.asked}"

    def close(self):
        self.page.close()


def runs_nothing_inline(page, said):
    page.evaluate("""() => {
        const script = document.createElement('script');
        script.textContent = 'window.ran = true';
        document.body.append(script);
    }""")
    assert page.evaluate("window.ran") is None, "the policy lets inline code run"
    assert any("Content Security Policy" in text for text in said), said


def load(browser):
    grounds = []
    for scheme, width, height, suffix in [("light", 1100, 900, "light"), ("dark", 1100, 900, "dark"), ("light", 400, 800, "phone")]:
        look = Look(browser, scheme, width, height)
        page = look.page
        row = page.locator("tr[data-volume=disk]")
        expect(row.locator("[data-of=state]")).to_have_text("serving")
        expect(page.locator("#summary")).to_contain_text("1 volume, 1 open, 1 connection")
        expect(row.locator("[data-of=clients]")).to_have_text("1")
        # The second look has rates.
        expect(row.locator("[data-of=write]")).not_to_have_text("–")
        look.sound(f"list-{suffix}")
        # By the keyboard alone.
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "search"
        link = row.locator("a")
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent") == "disk":
                break
        expect(link).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#name")).to_have_text("disk")
        expect(page.locator("#sums")).to_contain_text("16.0 MiB stored, 16.0 MiB of that in memory")
        cells = page.evaluate(MAP)
        assert cells[:256] == ["cached"] * 256, f"the first quarter is in memory: {cells[:256]}"
        assert set(cells[256:1023]) == {"absent"}, f"nothing is stored between: {cells[256:1023]}"
        assert cells[1023] in ("dirty", "cached", "part"), f"the last block is written: {cells[1023]}"
        expect(page.locator("#lines figure")).to_have_count(4)
        expect(page.locator("#lines [data-of=dirty] b")).not_to_have_text("–")
        assert re.search(r"\d,\d", page.locator("#lines [data-of=write] polyline").get_attribute("points"))
        facts = page.locator("#facts").inner_text()
        # The map is of this moment, and the objects are counted now and then: the page says when.
        assert re.search(r"Objects in the store\s+(not counted yet|[\d.]+ \w+ as of \d+:\d\d:\d\d)", facts), facts
        for fact in ["Hit ratio of the cache", "s left, epoch 1", "Last checkpoint", "Journal", "Held by"]:
            assert fact in facts, f"no {fact} in {facts}"
        expect(page.locator("#connections tr")).to_have_count(1)
        expect(page.locator("#commands code").first).to_have_text(re.compile(r"^nbdinfo nbd://127\.0\.0\.1:\d+/disk$"))
        # An action asks first, and does nothing if it is left.
        page.get_by_role("button", name="Flush…").click()
        expect(page.locator("#question")).to_have_text("Flush disk")
        page.keyboard.press("Escape")
        expect(page.locator("#dialog")).not_to_be_visible()
        expect(page.get_by_role("button", name="Delete…")).to_be_disabled()
        assert not any("/flush" in address for address in look.asked), look.asked
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        look.sound(f"volume-{suffix}")
        if suffix == "dark":
            runs_nothing_inline(page, look.said)
        look.close()
    assert grounds[0] != grounds[1], f"dark and light look alike: {grounds}"


def busy(browser):
    """A picture under load: what a client does is shown as rates, latencies and lines."""
    for scheme, points in [("light", 24), ("dark", 6)]:
        look = Look(browser, scheme, 1100, 900)
        page = look.page
        row = page.locator("tr[data-volume=disk]")
        # A line needs some points.
        for _ in range(points):
            with page.expect_response(lambda answer: answer.url.endswith("/status")):
                pass
        for column in ["read", "write"]:
            expect(row.locator(f"[data-of={column}]")).to_have_text(re.compile(r"^[1-9][\d.]* [KM]iB/s$"))
        expect(row.locator("[data-of=flush]")).to_have_text(re.compile(r"^[1-9][\d.]* (µs|ms|s)$"))
        look.sound(f"busy-list-{scheme}")
        page.get_by_role("link", name="disk").click()
        expect(page.locator("#connections tr")).to_have_count(1)
        expect(page.locator("#sums")).to_contain_text("of that in memory")
        for line in ["read", "write", "flush"]:
            of = page.locator(f"#lines [data-of={line}]")
            expect(of.locator("b")).not_to_have_text(re.compile("^(–|0 B/s)$"))
            heights = [point.split(",")[1] for point in of.locator("polyline").get_attribute("points").split()]
            # The highest value sets the scale: beside one that is far higher, the others look alike.
            assert len(heights) > 3 and len(set(heights)) > 1, f"the line of {line} is flat: {heights}"
        assert len(set(page.evaluate(MAP))) >= 3, "the map shows what is dirty, what is stored and what is absent"
        look.sound(f"busy-{scheme}")
        look.close()


def answer(page, **fields):
    """Fills in the dialog that is open, and confirms it. Without a field, the button must work at once."""
    yes = page.locator("#yes")
    for label, text in fields.items():
        expect(yes).to_be_disabled()
        page.locator("#fields label").filter(has_text=label).locator("input").fill(text)
    expect(yes).to_be_enabled()
    yes.click()


def actions(browser):
    """Each action is confirmed on the page, and its effect is looked up in the API, which the page has no part in.
    The gateway refuses a name that is not valid (422), and the page has to show why."""
    look = Look(browser, errors=("401", "422"))
    page = look.page

    def api(path, status=200):
        found = page.request.get(f"{url}api/v1/{path}")
        assert found.status == status, f"{path}: {found.status} {found.text()}"
        return found.json()

    def disk():
        return api("volumes/disk")["open"]

    def click(name):
        page.get_by_role("button", name=name).click()

    def said(text):
        expect(page.locator("#said")).to_have_text(text)

    page.get_by_role("link", name="disk").click()
    before = disk()
    assert before["uncommitted_bytes"] == 4096 and before["journal_records"] > 0 and before["checkpoints"] == 0, before

    # What is not confirmed is not done.
    click("Flush…")
    click("Cancel")
    expect(page.locator("#dialog")).not_to_be_visible()
    assert disk()["uncommitted_bytes"] == 4096
    # The first change asks for the token, until it is the right one.
    click("Flush…")
    answer(page)
    expect(page.locator("#question")).to_have_text("The gateway asks for its token")
    look.sound("sign-in")
    answer(page, Token="wrong-" + token[0])
    expect(page.locator("#fields input")).to_have_value("")
    assert disk()["uncommitted_bytes"] == 4096, "nothing is done with a wrong token"
    answer(page, Token=token[0])
    said("Flush: done.")
    flushed = disk()
    assert flushed["uncommitted_bytes"] == 0 and flushed["dirty_bytes"] == 0, flushed
    assert flushed["totals"]["flushes"] == before["totals"]["flushes"] + 1, flushed
    assert flushed["journal_records"] > before["journal_records"], flushed

    # Later ones do not ask for it.
    click("Checkpoint…")
    answer(page)
    said("Checkpoint: done.")
    folded = disk()
    assert folded["checkpoints"] == 1 and folded["journal_bytes"] < flushed["journal_bytes"], folded
    expect(page.locator("#facts")).to_contain_text("16.0 MiB live, 0 B to be freed")
    expect(page.locator("#facts")).to_contain_text("4.0 KiB in 1 packs")

    # A snapshot is taken under a name, and deleted by whoever types it.
    def snapshots():
        return [snapshot["name"] for snapshot in api("volumes/disk/snapshots")]

    expect(page.locator("#untaken")).to_have_text("There is none.")
    click("Snapshot…")
    answer(page, **{"Name of the snapshot": "a@b"})
    expect(page.locator("#said")).to_contain_text("not a valid name of a snapshot")
    for name in ["monday", "tuesday"]:
        click("Snapshot…")
        answer(page, **{"Name of the snapshot": name})
        said("Take it: done.")
        expect(page.locator("#taken tr").first).to_contain_text(f"disk@{name}")
    expect(page.locator("#untaken")).to_have_text("")
    assert snapshots() == ["monday", "tuesday"], snapshots()
    look.sound("snapshots")
    click("Delete snapshot monday")
    page.get_by_label("Type its name").fill("tuesday")
    expect(page.locator("#yes")).to_be_disabled()
    answer(page, **{"Type its name": "monday"})
    said("Delete: done.")
    expect(page.locator("#taken tr")).to_have_count(1)
    assert snapshots() == ["tuesday"], snapshots()

    api("volumes/made", 404)
    click("New volume…")
    answer(page, Name="made", Size="ten")
    said("Make it: a size is a whole number with B, KiB, MiB, GiB, TiB or PiB")
    api("volumes/made", 404)
    click("New volume…")
    answer(page, Name="made", Size="32MiB")
    said("Make it: done.")
    made = api("volumes/made")
    assert made["size_bytes"] == 32 << 20 and made["open"] is None, made

    page.get_by_role("link", name="All volumes").click()
    page.get_by_role("link", name="made").click()
    click("Delete…")
    page.get_by_label("Type its name").fill("disk")
    expect(page.locator("#yes")).to_be_disabled()
    page.keyboard.press("Enter")
    api("volumes/made")
    answer(page, **{"Type its name": "made"})
    said("Delete: done.")
    api("volumes/made", 404)
    assert [volume["name"] for volume in api("volumes")] == ["disk"], "no other volume is deleted"
    page.get_by_role("link", name="All volumes").click()
    expect(page.locator("#volumes tr")).to_have_count(1)

    click("Drain…")
    answer(page, **{"Type drain": "drain"})
    expect(page.locator("#trouble")).to_contain_text(re.compile("The gateway (is|does not answer)"))
    look.close()


def token_first(browser):
    """Where reading needs the token too, the page asks once for it, and then shows everything without an error."""
    look = Look(browser, errors=("401",))
    page = look.page
    page.evaluate("""() => {
        window.trouble = [];
        const of = document.querySelector('#trouble');
        new MutationObserver(() => of.hidden || window.trouble.push(of.textContent)).observe(of, {attributes: true});
    }""")
    expect(page.locator("#question")).to_have_text("The gateway asks for its token")
    answer(page, Token=token[0])
    expect(page.locator("tr[data-volume=disk] [data-of=state]")).to_have_text("serving")
    expect(page.locator("#dialog")).not_to_be_visible()
    assert page.evaluate("window.trouble") == [], page.evaluate("window.trouble")
    # It is kept for this tab alone.
    page.reload()
    expect(page.locator("tr[data-volume=disk] [data-of=state]")).to_have_text("serving")
    other = Look(browser, errors=("401",))
    expect(other.page.locator("#question")).to_have_text("The gateway asks for its token")
    other.close()
    look.close()


def token_declined(browser):
    """Whoever cancels the dialog is not asked again, and the gateway gets no request, until they want to sign in."""
    look = Look(browser, errors=("401",))
    page = look.page
    question = page.locator("#question")
    expect(question).to_have_text("The gateway asks for its token")
    # The page's clock is ours from here on: a minute passes at once.
    page.clock.install()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#trouble")).to_have_text("a bearer token is required")
    expect(page.locator("#summary")).to_have_text("Not signed in")
    asked = len(look.asked)
    page.clock.run_for(60_000)
    expect(page.locator("#dialog")).not_to_be_visible()
    assert look.asked[asked:] == [], f"asked in the minute after it was cancelled: {look.asked[asked:]}"
    look.sound("token-declined")
    # An action asks for it, and if that is cancelled too, nothing else does.
    page.get_by_role("button", name="Drain…").click()
    answer(page, **{"Type drain": "drain"})
    expect(question).to_have_text("The gateway asks for its token")
    page.keyboard.press("Escape")
    expect(page.locator("#said")).to_have_text("Drain: a bearer token is required")
    asked = len(look.asked)
    page.clock.run_for(60_000)
    expect(page.locator("#dialog")).not_to_be_visible()
    assert look.asked[asked:] == [], look.asked[asked:]
    # Whoever wants to sign in does.
    page.get_by_role("button", name="Enter the token…").click()
    answer(page, Token=token[0])
    expect(page.locator("tr[data-volume=disk] [data-of=state]")).to_have_text("serving")
    expect(page.locator("#trouble")).not_to_be_visible()
    expect(page.get_by_role("button", name="Enter the token…")).not_to_be_visible()
    with page.expect_response(lambda answer: answer.url.endswith("/status")):
        page.clock.run_for(2_000)
    look.close()


def token_changed(browser):
    """A dialog that is open is not turned into the one for the token, which follows it."""
    look = Look(browser, errors=("401",))
    page = look.page
    answer(page, Token=token[0])
    expect(page.locator("tr[data-volume=disk] [data-of=state]")).to_have_text("serving")
    page.get_by_role("button", name="New volume…").click()
    expect(page.locator("#question")).to_have_text("Make a volume")
    # From now on the gateway refuses it.
    page.route("**/api/v1/**", lambda route: route.fulfill(status=401, json={"error": "the token is wrong"}))
    with page.expect_response(lambda answer: answer.url.endswith("/status")):
        pass
    # Time for the page to act on it: it draws two more frames.
    page.evaluate("() => new Promise((over) => requestAnimationFrame(() => requestAnimationFrame(over)))")
    expect(page.locator("#question")).to_have_text("Make a volume")
    expect(page.locator("#fields input")).to_have_count(2)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#question")).to_have_text("The gateway asks for its token")
    look.close()


def many(browser):
    look = Look(browser, width=1440, height=1000)
    page = look.page
    rows = page.locator("#volumes tr")
    expect(rows).to_have_count(42)
    for _ in range(5):
        with page.expect_response(lambda answer: answer.url.endswith("/status")):
            pass
    taller = page.evaluate("document.documentElement.scrollHeight - innerHeight")
    assert taller <= 0, f"42 volumes are {taller} pixels taller than a screen of 1,000"
    look.sound("many")
    page.get_by_role("button", name="Name").click()
    expect(rows.first.locator("a")).to_have_text("vm-39")
    page.get_by_role("button", name="Size").click()
    expect(rows.first.locator("a")).to_have_text("vm-00")
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("Size")
    page.locator("#search").fill("closed")
    expect(rows).to_have_count(2)
    expect(rows.first.locator("[data-of=stored]")).to_contain_text("B")
    page.get_by_role("link", name="closed-1").click()
    expect(page.locator("#state")).to_contain_text("This volume is closed")
    expect(page.locator("#map")).not_to_be_visible()
    # One that is closed is deleted by whoever types its name.
    page.get_by_role("button", name="Delete…").click()
    expect(page.locator("#yes")).to_be_disabled()
    page.get_by_label("Type its name").fill("closed-1")
    expect(page.locator("#yes")).to_be_enabled()
    look.sound("delete")
    page.get_by_role("button", name="Cancel").click()
    look.close()


def outage(browser):
    look = Look(browser, errors=("503",))
    page = look.page
    expect(page.locator("#trouble")).to_contain_text("The store has answered nothing for", timeout=30_000)
    row = page.locator("tr[data-volume=disk]")
    expect(row.locator("[data-of=state]")).to_have_text("serving")
    expect(row.locator("[data-of=dirty]")).to_contain_text("1.0 MiB")
    look.sound("outage")
    page.get_by_role("button", name="Ask the store now").click()
    expect(page.locator("#said")).to_contain_text("the store has answered nothing for")
    look.close()


with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=[
        "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"])
    {"load": load, "busy": busy, "actions": actions, "token": token_first, "declined": token_declined, "changed": token_changed,
      "many": many, "outage": outage}[scenario](browser)
    browser.close()
