"""Looks at the status page as a person's browser does, dark and light, and says what is wrong with it.

    page.py URL VOLUME PICTURE_LIGHT PICTURE_DARK

The volume has data in its first quarter, which is durable, and in its last block, which may not be; nothing between.
"""
import sys

from playwright.sync_api import expect, sync_playwright

url, volume, *pictures = sys.argv[1:]

# Of each cell of the map: whether anything is drawn there.
DRAWN = """canvas => {
  const pen = canvas.getContext('2d');
  const [columns, rows] = [128, 8];
  const at = (n) => pen.getImageData((n % columns + 0.5) * canvas.width / columns,
                                     (Math.floor(n / columns) + 0.5) * canvas.height / rows, 1, 1).data;
  return Array.from({length: columns * rows}, (_, n) => at(n)[3] > 0);
}"""

with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=[
        "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"])
    grounds = []
    for scheme, picture in zip(["light", "dark"], pictures):
        page = browser.new_page(color_scheme=scheme, viewport={"width": 1000, "height": 640})
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        article = page.locator(f"article[data-volume='{volume}']")
        expect(article.locator("h2")).to_have_text(volume)
        expect(article.locator(".facts")).to_contain_text("serving")
        expect(page.locator("#summary")).to_contain_text("1 volume")
        expect(article.locator("[data-of=clients]")).to_have_text("1")
        expect(page.locator("#connections td").last).to_have_text(volume)
        expect(article.locator(".stored-total")).to_contain_text("16.0 MiB stored, 16.0 MiB of that cached")
        # The second look has rates.
        expect(article.locator("[data-of=read]")).to_contain_text("a second")
        drawn = article.locator("canvas").evaluate(DRAWN)
        assert all(drawn[:256]), f"the first quarter is stored: {drawn[:256]}"
        assert not any(drawn[256:1023]), f"nothing is stored between: {drawn[256:1023]}"
        assert drawn[1023], "the last block is dirty or stored"
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.screenshot(path=picture)
        assert not said, f"the console says {said}"
        assert all(address.startswith(url) for address in asked), f"asked for {asked}"
        page.evaluate("""() => {
            const script = document.createElement('script');
            script.textContent = 'window.ran = true';
            document.body.append(script);
        }""")
        assert page.evaluate("window.ran") is None, "the policy lets inline code run"
        assert any("Content Security Policy" in text for text in said), said
        page.close()
    assert grounds[0] != grounds[1], f"dark and light look alike: {grounds}"
    browser.close()
