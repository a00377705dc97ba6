"The explorer as people use it: a real JupyterLab and a real Voila in a real browser. Pictures are compared, not only the absence of errors."
import contextlib, io, os, re, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT, environment

SHOTS = ROOT/'_screenshots'
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
NOISE = re.compile(r'shared module|favicon|404|Failed to load resource|deprecated|source map|WebSocket|punycode|require\.js|widgets-controls.*css', re.I)   # of the pages around the widget

def chromium() -> str|None:
    return next((path for name in ('chromium', 'chromium-browser', 'google-chrome') if (path := shutil.which(name))), None)

needs_browser = os.environ.get('OACL_NEEDS_BROWSER') == '1'                # CI insists
pytestmark = pytest.mark.skipif(chromium() is None and not needs_browser, reason='needs Chromium (Debian, Ubuntu: apt install chromium)')
sync_api = pytest.importorskip('playwright.sync_api', reason='needs the package playwright')

@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=FLAGS, headless=True)
        yield started
        started.close()

def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]

@contextlib.contextmanager
def served(folder:Path, voila:bool):
    "The explorer's own command, without its browser: (address, seconds until it answered)."
    from oacl.explore import explore_command, explorer_notebook
    port, began = free_port(), time.monotonic()
    notebook = explorer_notebook(folder/'explorer.ipynb')
    command = explore_command(notebook, voila, port, browser=False) + ([] if voila else ['--IdentityProvider.token=', '--allow-root', '--LabApp.news_url='])
    env = environment() | dict(PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]), JUPYTER_CONFIG_DIR=str(folder/'config'), OMP_NUM_THREADS='2')
    with open(folder/'server.log', 'w') as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            address = f'http://127.0.0.1:{port}/' + ('' if voila else 'api/status')
            while True:
                try: urllib.request.urlopen(address, timeout=60 if voila else 2).close(); break
                except OSError:
                    assert process.poll() is None and time.monotonic() - began < 120, (folder/'server.log').read_text()[-2000:]
                    time.sleep(.3)
            yield f'http://127.0.0.1:{port}/' + ('' if voila else 'lab/tree/explorer.ipynb'), time.monotonic() - began
        finally:
            process.terminate()
            process.wait(30)

class Page:
    "The explorer on a page."
    def __init__(self, browser, address:str, size=(1280, 900)):
        self.page = browser.new_page(viewport=dict(width=size[0], height=size[1]), bypass_csp=True)       # Jupyter's policy forbids evaluated conditions
        self.errors = []
        self.page.on('console', lambda message: self.errors.append(message.text) if message.type == 'error' and not NOISE.search(message.text) else None)
        self.page.on('pageerror', lambda error: self.errors.append(str(error)))
        self.page.goto(address, wait_until='domcontentloaded', timeout=120_000)

    def ready(self, tiles=16):
        self.page.wait_for_function(f'document.querySelectorAll(".oacl-tile img").length == {tiles} && [...document.querySelectorAll(".oacl-tile img")].every(image => image.naturalWidth > 0)', timeout=60_000)

    def run_all(self):
        "Menu Run, Run All Cells; again where the notebook was not ready for it."
        self.page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').first.wait_for(timeout=60_000)
        for _ in range(4):
            self.page.wait_for_timeout(800)
            self.page.get_by_role('menuitem', name='Run', exact=True).click()
            self.page.wait_for_timeout(300)
            self.page.get_by_text('Run All Cells', exact=True).click()
            with contextlib.suppress(sync_api.TimeoutError): return self.page.locator('.oacl-tile img').first.wait_for(timeout=15_000)
        self.shot('lab-not-running')

    def pictures(self) -> list:
        "Where the bytes of every tile are (a new picture has a new address)."
        return self.page.eval_on_selector_all('.oacl-tile img', 'images => images.map(image => image.src)')

    def pixels(self) -> np.ndarray:
        "The gallery as it is on the screen."
        tile = self.page.locator('.oacl-tile').first
        tile.scroll_into_view_if_needed()
        box, last = self.page.locator('.oacl-tile').nth(0).bounding_box(), self.page.locator('.oacl-tile').nth(3).bounding_box()
        clip = dict(x=box['x'], y=box['y'], width=max(last['x'] + last['width'] - box['x'], 100), height=box['height'])
        return np.asarray(Image.open(io.BytesIO(self.page.screenshot(clip=clip))).convert('RGB')).astype(int)

    def settled(self, quiet=.4, most=30.):
        "Until the tiles have not changed for a moment."
        last, since, end = self.pictures(), time.monotonic(), time.monotonic() + most
        while time.monotonic() - since < quiet and time.monotonic() < end:
            self.page.wait_for_timeout(60)
            now = self.pictures()
            if now != last: last, since = now, time.monotonic()

    def after(self, act, what:str) -> float:
        "Do something; the pixels must be others afterwards. Gives the seconds until the first tile changed."
        self.settled()
        before, shown = self.pictures(), self.pixels()
        began = time.monotonic()
        act()
        self.page.wait_for_function('before => { const now = [...document.querySelectorAll(".oacl-tile img")].map(image => image.src); return now.length != before.length || now.some((src, i) => src != before[i]) }',
                                    arg=before, timeout=60_000, polling=20)
        seconds = time.monotonic() - began
        end = time.monotonic() + 20
        while (now := self.pixels()).shape == shown.shape and np.abs(now - shown).max() <= 8:
            assert time.monotonic() < end, f'{what}: nothing changed on the screen'
            self.page.wait_for_timeout(100)
        return seconds

    def message(self) -> str: return self.page.locator('.oacl-message').inner_text().strip()
    def said(self, words:str): self.page.wait_for_function('words => document.querySelector(".oacl-message").innerText.includes(words)', arg=words, timeout=60_000)
    def select(self, name:str, value:str): self.page.locator('select').and_(self.page.get_by_label(name, exact=True)).select_option(value)
    def press(self, text:str): self.page.locator('.widget-toggle-button', has_text=re.compile(f'^{text}$')).first.click()
    def click(self, text:str): self.page.locator('button.widget-button', has_text=re.compile(f'^ *{text}$')).first.click()
    def check(self, name:str): self.page.locator('.widget-checkbox', has_text=name).locator('input').click()
    def type(self, name:str, text:str):
        field = self.page.locator('.widget-text, .widget-combobox', has_text=re.compile(f'^ *{name}')).locator('input').first
        field.fill(text)
        field.press('Enter')
    def slide(self, name:str, key='ArrowRight', times=1):
        handle = self.page.locator('.widget-slider', has_text=re.compile(f'^ *{name}')).locator('.noUi-handle').first
        handle.focus()
        for _ in range(times): handle.press(key)
    def shot(self, name:str):
        self.settled()
        SHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SHOTS/f'{name}.png')

def use_everything(page:Page, name:str, tmp_path:Path) -> dict:
    "Every control, one after the other; gives the seconds each took to show."
    seconds = {}
    def do(what, act): seconds[what] = page.after(act, what)
    page.ready()
    page.settled()
    page.shot(f'{name}-start')
    for view in ('mask', 'boxes', 'covered', 'object-aware crops', 'background only', 'mixed', 'heat map', 'boxes'): do(f'view: {view}', lambda: page.press(view))
    do('threshold', lambda: page.slide('threshold', times=12))
    do('margin', lambda: page.slide('box margin', 'ArrowLeft', times=12))
    page.shot(f'{name}-boxes')
    page.press('heat map')
    do('shown look', lambda: page.slide('shown look', 'ArrowLeft', times=2))
    do('play', lambda: page.page.locator('.widget-play button').first.click())
    do('looks', lambda: page.slide('looks', times=2))
    do('temperature', lambda: page.slide('temperature', 'ArrowLeft', times=8))
    do('upscale', lambda: page.press('1'))
    do('formula', lambda: page.press('published'))
    do('fill', lambda: page.select('covered with', 'black'))
    do('clamp', lambda: page.check('clamp'))
    do('clamp again', lambda: page.check('clamp'))
    do('negatives', lambda: page.select('negatives', 'other pictures'))
    do('one negative less', lambda: page.page.locator('.oacl-tile').nth(1).locator('.widget-toggle-button').click())
    page.click('none'); page.said('at least two negatives')
    page.click('all'); page.page.wait_for_function('document.querySelector(".oacl-message").innerText.trim() == ""')
    do('checkpoint', lambda: page.type('checkpoint', 'photos'))
    page.type('checkpoint', 'nowhere.pt'); page.said('nowhere.pt')
    do('checkpoint again', lambda: page.type('checkpoint', 'scenes'))
    do('beside it', lambda: page.type('beside it', 'photos'))
    page.shot(f'{name}-two')
    do('alone again', lambda: page.type('beside it', ''))
    strip = page.page.locator('img.widget-image').last.get_attribute('src')
    page.page.locator('.oacl-tile').nth(2).locator('button[title*="all views"]').click()
    page.page.wait_for_function('before => [...document.querySelectorAll("img.widget-image")].at(-1).src != before', arg=strip)
    do('two objects', lambda: page.select('pictures', 'scenes, two objects'))
    page.type('folder', str(tmp_path/'no folder')); page.said('no folder')
    photo, text = tmp_path/'photo.png', tmp_path/'notes.txt'
    Image.effect_mandelbrot((300, 200), (-2, -1.5, 1, 1.5), 60).convert('RGB').save(photo)
    Image.effect_noise((200, 260), 80).convert('RGB').save(tmp_path/'noise.jpg')
    text.write_text('no picture')
    with page.page.expect_file_chooser() as chooser: page.page.locator('button', has_text='upload pictures').click()
    chooser.value.set_files([photo, tmp_path/'noise.jpg', text])
    page.ready(2); page.said('notes.txt')
    page.settled()
    page.shot(f'{name}-uploaded')
    page.click('export')
    with page.page.expect_download() as download: page.page.locator('a[download]').click()
    assert download.value.suggested_filename == 'oacl-export.zip'
    assert page.errors == []
    return seconds

@pytest.mark.parametrize('voila', [False, True], ids=['JupyterLab', 'Voila'])
def test_every_control(browser, tmp_path, voila):
    with served(tmp_path, voila) as (address, answered):
        began = time.monotonic()
        page = Page(browser, address)
        if not voila: page.run_all()
        page.ready()
        print(f"\n{'Voila' if voila else 'JupyterLab'}: server {answered:.1f} s, page to pictures {time.monotonic() - began:.1f} s")
        seconds = use_everything(page, 'voila' if voila else 'lab', tmp_path)
        print(', '.join(f'{what} {1000*value:.0f} ms' for what, value in seconds.items()))
        if voila: assert any(path.name == 'boxes.txt' for path in tmp_path.rglob('boxes.txt'))
        page.page.close()
