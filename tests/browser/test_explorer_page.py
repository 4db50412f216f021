"""The explorer's page in Chromium, driven by mouse, finger and keys, its pictures against Python's."""

import re

import numpy as np
import pytest

from vae_course.engine.families import FastCVAE
from vae_course.further.objectives import ConditionalVAE
from vae_course.live.explorer import build_explorer
from vae_course.model import CVAE
from vae_course.reparameterization import draw_eps

ATOL = 1e-4  # of a probability; float32 sums in two orders stay some 100 times below
GREY = 0.5 / 255 + ATOL  # what a screen's 256 levels add
SAMPLE = "(codes) => explorer.then(({ decode }) => Array.from(decode(codes)))"
CANVAS = """(canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return Array.from({ length: canvas.width * canvas.height }, (_, i) => data[4 * i] / 255);
}"""


@pytest.fixture(scope="module")
def site(pretrained, mnist, x_test, tmp_path_factory, exploring):
    folder = tmp_path_factory.mktemp("explorer") / "page"
    return exploring(build_explorer(*pretrained, x_test, mnist[1][1], folder))


@pytest.fixture
def explorer(opened, site):
    """A function that opens the page, and waits until it has started."""
    def open_page(url=site, **options):
        page = opened(url, **options)
        assert page.evaluate("explorer.then(({ error }) => error ?? null)") is None
        return page

    return open_page


def hold_time(page):
    """From here on the page's clock moves only when the test says so: a busy machine changes nothing."""
    page.clock.install(time=0)
    page.clock.pause_at(1000)


def place(page):
    return np.array(page.evaluate("explorer.then(({ z }) => z())"), np.float32)


def settle(page):
    """Wait until what was asked for is painted: two frames."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def wait_until(page, condition):
    """Ask again and again; `wait_for_function` would need `eval`, which the page forbids."""
    for _ in range(600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"30 s went by without {condition}")


def arrive(page, z):
    """Wait for the browser to hand on a move: to z but for a pixel or two, 7 / 350 on the narrow page."""
    wait_until(page, f"explorer.then((e) => Math.hypot(e.z()[0] - {z[0]}, e.z()[1] - {z[1]}) < 0.05)")


def digit(page, selector="#digit"):
    settle(page)
    return np.reshape(page.locator(selector).evaluate(CANVAS), (28, 28))


def python_digit(model, z):
    return np.asarray(model.sample(np.reshape(z, (1, 2))))[0, ..., 0]


def to_pixels(page, z):
    """Where z lies in the window."""
    box, extent = page.locator("#plane").bounding_box(), float(page.locator("#z1").get_attribute("max"))
    return [box["x"] + box["width"] / 2 * (1 + z[0] / extent),
            box["y"] + box["height"] / 2 * (1 - z[1] / extent)]


def assert_shows(page, model):
    np.testing.assert_allclose(digit(page), python_digit(model, place(page)), atol=GREY)


def test_pixels_equal_pythons_at_random_points(explorer, pretrained):
    page, model = explorer(), pretrained[0]
    z = np.random.default_rng(0).normal(0, 2, (500, 2)).astype(np.float32)
    pixels = np.reshape(page.evaluate(SAMPLE, z.ravel().tolist()), (500, 28, 28, 1))
    np.testing.assert_allclose(pixels, model.sample(z), atol=ATOL)
    assert page.evaluate("explorer.then(({ worst }) => worst)") < ATOL


def test_without_vector_instructions(browser, site, pretrained):
    def disable(route):
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text() + "\ntf.env().set('WASM_HAS_SIMD_SUPPORT', false);")

    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url.rsplit("/")[-1]))
    page.route("**/tf-backend-wasm.min.js", disable)
    page.goto(site)
    z = np.random.default_rng(2).normal(0, 2, (20, 2)).astype(np.float32)
    pixels = np.reshape(page.evaluate(SAMPLE, z.ravel().tolist()), (20, 28, 28, 1))
    np.testing.assert_allclose(pixels, pretrained[0].sample(z), atol=ATOL)
    assert "tfjs-backend-wasm.wasm" in asked and "tfjs-backend-wasm-simd.wasm" not in asked
    page.close()


@pytest.mark.parametrize(("filters", "image_shape"), [((3, 5), (30, 25, 1)), ((2, 4), (8, 9, 3))])
def test_decoders_of_other_sizes(explorer, exploring, tmp_path, filters, image_shape):
    model = CVAE(filters=filters, seed=0, image_shape=image_shape)
    x = np.random.default_rng(0).integers(0, 2, (30, *image_shape)).astype(np.float32)
    page = explorer(exploring(build_explorer(model, {}, x, np.arange(30) % 4, tmp_path / "page")))
    z = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    pixels = np.reshape(page.evaluate(SAMPLE, z.ravel().tolist()), (5, *image_shape))
    np.testing.assert_allclose(pixels, model.sample(z), atol=ATOL)
    settle(page)
    size = page.locator("#digit").evaluate("(canvas) => [canvas.height, canvas.width]")
    assert tuple(size) == image_shape[:2]


def other_models():
    """Models of other families, likelihoods and colours, each with images, labels and names or without."""
    rng = np.random.default_rng(0)
    grey = (rng.integers(0, 256, (30, 9, 12, 3)) / 255).astype(np.float32)
    for likelihood, images, labels, names in (
            ("bernoulli", None, None, None), ("continuous_bernoulli", grey, None, None),
            ("discretized_logistic", grey, np.arange(30) % 3, ("Ankle boot", "<b>bag</b>", "éàü"))):
        yield FastCVAE(filters=(2, 4), seed=0, image_shape=(9, 12, 3), likelihood=likelihood), images, labels, names
    yield FastCVAE(filters=(2, 4), seed=0, image_shape=(12, 9, 4), likelihood="continuous_bernoulli"), None, None, None


@pytest.mark.parametrize(("model", "x", "labels", "names"), other_models(), ids=["none", "unlabelled", "named", "rgba"])
def test_other_pixels_colours_and_labels(explorer, exploring, serious, tmp_path, model, x, labels, names):
    page = explorer(exploring(build_explorer(model, {}, x, labels, tmp_path / "page", names)))
    z = np.random.default_rng(1).normal(0, 2, (50, 2)).astype(np.float32)
    height, width, channels = model.image_shape
    pixels = np.reshape(page.evaluate(SAMPLE, z.ravel().tolist()), (50, height, width, channels))
    np.testing.assert_allclose(pixels, model.sample(z), atol=ATOL)
    settle(page)
    assert page.locator("#digit").evaluate("(canvas) => [canvas.height, canvas.width]") == [height, width]
    box = page.locator("#digit").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(width / height, rel=0.03)  # a border is two pixels wide
    assert not page.locator("#label-row").is_visible()
    assert page.locator("#legend").is_visible() == (names is not None)
    nearest = page.locator("#nearest").text_content()
    if names:
        assert page.locator("#legend li").all_text_contents() == list(names) and nearest in names
        assert page.locator("#from option").all_text_contents() == list(names)
    else:
        assert page.locator("#from option").all_text_contents() == ["right", "top", "left", "bottom"]
        assert re.fullmatch("–" if x is None else r"number \d+", nearest)
    start, end = walk_ends(page)
    assert np.linalg.norm(start - end) > 0
    assert not serious(page)


def test_colours_are_painted(explorer, exploring, tmp_path):
    model = FastCVAE(filters=(2, 4), seed=0, image_shape=(9, 12, 3), likelihood="continuous_bernoulli")
    model.output_bias.assign([-9.0, 0.0, 9.0])
    page = explorer(exploring(build_explorer(model, {}, None, None, tmp_path / "page")))
    settle(page)
    shown = page.locator("#digit").evaluate(
        "(canvas) => Array.from(canvas.getContext('2d').getImageData(0, 0, 12, 9).data)")
    shown = np.reshape(shown, (9, 12, 4)) / 255
    np.testing.assert_allclose(shown[..., :3], model.sample(np.zeros((1, 2), np.float32))[0], atol=GREY)
    assert (shown[..., 3] == 1).all() and shown[..., 2].mean() - shown[..., 0].mean() > 0.5


def test_a_label_is_chosen_where_the_model_wants_one(explorer, exploring, tmp_path, x_test, mnist):
    model = ConditionalVAE(filters=(2, 4), seed=0)
    page = explorer(exploring(build_explorer(model, {}, x_test[:50], mnist[1][1][:50], tmp_path / "page")))
    for label in (7, 0):
        page.locator("#label").select_option(label=str(label))
        shown = model.given(label)
        assert_shows(page, shown)
        sample = digit(page, "#samples button:nth-child(2) canvas")
        np.testing.assert_allclose(sample, python_digit(shown, draw_eps(0, 0, (8, 2)).numpy()[1]), atol=GREY)


def test_the_policy_holds(browser, site):
    page = browser.new_page()  # the faults are what is looked for
    page.goto(site)
    assert page.evaluate("explorer.then(({ error }) => error ?? null)") is None
    tried = page.evaluate("""() => new Promise((done) => {
      const image = new Image(), found = new Set(); // each comes twice, once for the page's own policy
      document.addEventListener("securitypolicyviolation", (event) => {
        found.add(event.effectiveDirective);
        if (found.size === 3) done([...found].sort());
      });
      image.src = "http://127.0.0.1:9/x.png";
      const script = document.createElement("script");
      script.textContent = "window.stranger = true";
      document.head.append(script);
      fetch("http://127.0.0.1:9/").catch(() => null);
    })""")
    assert tried == ["connect-src", "img-src", "script-src-elem"]
    assert page.evaluate("window.stranger") is None
    page.close()


def test_the_mouse_moves_the_pointer(explorer, pretrained):
    page, (model, _) = explorer(), pretrained
    for z in ([0.0, 1.6], [-1.8, -1.3], [1.1, -0.7]):
        page.mouse.move(*to_pixels(page, z))
        arrive(page, z)
        assert_shows(page, model)
    assert page.locator("#nearest").text_content() in "479"  # whose clouds lie there


def test_a_finger_moves_the_pointer(explorer, pretrained):
    page = explorer(width=390, height=844, has_touch=True, is_mobile=True)
    page.touchscreen.tap(*to_pixels(page, [0.0, 1.6]))
    arrive(page, [0.0, 1.6])
    settle(page)
    assert page.locator("#nearest").text_content() == "0"
    assert_shows(page, pretrained[0])


def test_keys_move_the_pointer(explorer, pretrained):
    page = explorer()
    plane = page.locator("#plane")
    page.keyboard.press("Tab")
    for _ in range(8):  # reachable by Tab, with an outline
        if plane.evaluate("(canvas) => canvas === document.activeElement"):
            break
        page.keyboard.press("Tab")
    assert plane.evaluate("(canvas) => getComputedStyle(canvas).outlineStyle") == "solid"
    for key, z in (("ArrowRight", [0.1, 0]), ("ArrowUp", [0.1, 0.1]), ("Shift+ArrowLeft", [-0.4, 0.1]),
                   ("Shift+ArrowDown", [-0.4, -0.4])):
        page.keyboard.press(key)
        np.testing.assert_allclose(place(page), z, atol=1e-6)
    assert_shows(page, pretrained[0])
    page.keyboard.press("Home")
    np.testing.assert_allclose(place(page), [0, 0], atol=1e-6)
    assert page.evaluate("window.scrollY") == 0  # the arrow keys did not scroll
    for _ in range(20):
        page.keyboard.press("Shift+ArrowRight")
    assert place(page)[0] == float(page.locator("#z1").get_attribute("max"))  # and no further


def test_the_sliders_of_z(explorer, pretrained):
    page = explorer()
    page.locator("#z2").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    np.testing.assert_allclose(place(page), [0, 0.03], atol=1e-6)
    settle(page)
    assert page.locator("#z2-value").text_content() == "0.03"
    assert_shows(page, pretrained[0])


def test_the_place_is_spoken_once_after_the_pointer_has_come_to_rest(explorer):
    page = explorer()
    page.evaluate("""() => {
      window.spoken = [];
      const status = document.getElementById("status");
      new MutationObserver(() => spoken.push(status.textContent)).observe(status, { childList: true });
    }""")
    hold_time(page)
    page.locator("#plane").focus()
    for _ in range(6):
        page.keyboard.press("ArrowUp")
        page.clock.run_for(100)
    assert page.evaluate("spoken") == []
    page.clock.run_for(1000)
    (text,) = page.evaluate("spoken")
    assert re.fullmatch(r"z₁ 0\.00, z₂ 0\.60\. Nearest test image: \d\.", text)


def walk_ends(page):
    ends = []
    for t in (0, 1):
        page.locator("#t").fill(str(t))
        ends.append(place(page))
    return ends


def test_the_walk_is_straight_and_ends_where_it_should(explorer, pretrained):
    page, model = explorer(), pretrained[0]
    page.locator("#from").select_option(label="1")
    page.locator("#to").select_option(label="0")
    start, end = walk_ends(page)
    settle(page)
    assert page.locator("#nearest").text_content() == "0"
    for t in (0.25, 0.5, 0.9):
        page.locator("#t").fill(str(t))
        np.testing.assert_allclose(place(page), (1 - t) * start + t * end, atol=1e-6)
        assert_shows(page, model)


def test_the_walk_plays_and_pauses(explorer):
    page = explorer()
    start, end = walk_ends(page)
    hold_time(page)
    play = page.get_by_role("button", name="Play")
    play.click()
    page.clock.run_for(1000)
    t, z = float(page.locator("#t").input_value()), place(page)
    assert t == pytest.approx(0.25, abs=0.02)  # of four seconds; a frame is 0.004, the slider has two decimals
    np.testing.assert_allclose(z, (1 - t) * start + t * end, atol=0.01 * np.abs(end - start).max())
    page.get_by_role("button", name="Pause").click()
    page.clock.run_for(1000)
    np.testing.assert_array_equal(place(page), z)
    play.click()
    page.clock.run_for(4000)
    assert page.locator("#t").input_value() == "1"
    play.wait_for()  # it says Play again
    np.testing.assert_allclose(place(page), end, atol=1e-6)


def test_who_wants_less_motion_gets_steps(explorer):
    page = explorer(reduced_motion="reduce")
    page.get_by_role("button", name="Next step").click()
    assert float(page.locator("#t").input_value()) == pytest.approx(0.1)
    z = place(page)
    page.wait_for_timeout(300)
    np.testing.assert_array_equal(place(page), z)


def test_a_seed_gives_the_samples_of_python(explorer, pretrained):
    page, model = explorer(), pretrained[0]
    for seed in (0, 42, 99, 42):
        page.locator("#seed").fill(str(seed))
        z = draw_eps(seed, 0, (8, 2)).numpy()
        for i in range(8):
            shown = digit(page, f"#samples button:nth-child({i + 1}) canvas")
            np.testing.assert_allclose(shown, python_digit(model, z[i]), atol=GREY)
    page.locator("#samples button").nth(2).click()
    extent = float(page.locator("#z1").get_attribute("max"))
    np.testing.assert_allclose(place(page), z[2].clip(-extent, extent), atol=1e-6)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_axe_finds_nothing_serious(explorer, serious, scheme, width):
    page = explorer(width=width, height=844, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in ("#digit", "#plane", "#play", "#seed"):
        box = page.locator(selector).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, selector
    if width == 390:  # plane and digit can be seen together
        assert page.locator("#plane").bounding_box()["y"] + page.locator("#plane").bounding_box()["height"] <= 844
    corner = page.locator("#plane").evaluate("(canvas) => canvas.getContext('2d').getImageData(60, 2, 1, 1).data[0]")
    assert (corner < 128) == (scheme == "dark")
    assert not serious(page)
    page.wait_for_timeout(50)


@pytest.mark.parametrize(("name", "spoil", "message"), [
    ("explorer.bin", lambda content: content[:-4], "too short"),
    ("explorer.bin", lambda content: content + b"\0" * 4, "too long"),
    ("explorer.bin", lambda content: b"\0\0\x80\x3f" * 2000 + content[8000:], "other pixels"),
    ("explorer.json", lambda content: None, "404"),
])
def test_a_damaged_page_says_so(browser, exploring, model, x_test, tmp_path, name, spoil, message):
    folder = build_explorer(model, {}, x_test[:50], np.arange(50) % 10, tmp_path / "page")
    content = spoil((folder / name).read_bytes())
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    page = browser.new_page()
    page.goto(exploring(folder))
    page.evaluate("explorer")
    assert message in page.locator("#message").text_content()
    page.close()
