"What people read: the static site, links between notebooks, and tutorials whose exercises have answers that run."
import importlib.util, json, os, re, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path for path in (ROOT/'nbs').rglob('*.ipynb') if not any(part[0] in '._' for part in path.relative_to(ROOT/'nbs').parts))
TUTORIALS = [path for path in NOTEBOOKS if path.parent.name == 'tutorials']

def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT/f'tools/{name}.py')
    module = sys.modules[name] = importlib.util.module_from_spec(spec)           # dataclasses look their module up
    spec.loader.exec_module(module)
    return module

def read(path): return json.loads(path.read_text(encoding='utf-8'))
def source(cell): return ''.join(cell['source'])

# ---- the site

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site as `make docs` builds it without Quarto."
    folder = tmp_path_factory.mktemp('site')/'docs'
    done = subprocess.run([sys.executable, ROOT/'tools/docs.py', folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder

class Read(HTMLParser):
    "Links, anchors, pictures and nesting of a page."
    VOID = {'meta', 'link', 'img', 'br', 'hr', 'input', 'col', 'source', 'wbr', 'area', 'base', 'embed', 'track'}
    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.alts, self.tags, self.open, self.text = [], [], [], [], [], []
        self.feed(text)
        self.close()
    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag not in self.VOID: self.open.append(tag)
        if 'id' in attributes: self.ids.append(attributes['id'])
        if tag == 'img': self.alts.append(attributes.get('alt'))
        self.links += [attributes[name] for name in ('href', 'src') if attributes.get(name)]
    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag: pass
    def handle_data(self, data):
        if not {'pre', 'code', 'style', 'math'} & set(self.open): self.text.append(data)

def test_every_notebook_has_a_page_and_every_link_of_the_site_leads_somewhere(site):
    pages = {path.relative_to(site).as_posix(): Read(path.read_text(encoding='utf-8')) for path in site.rglob('*.html')}
    assert sorted(pages) == sorted(path.relative_to(ROOT/'nbs').with_suffix('.html').as_posix() for path in NOTEBOOKS)
    lost = []
    for name, page in pages.items():
        for link in page.links:
            if re.match(r'\w+:', link): continue
            path, _, anchor = unquote(link).partition('#')
            target = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
            if not (site/target).exists() or (anchor and target in pages and anchor not in pages[target].ids): lost.append((name, link))
    assert lost == []

def test_pages_need_no_network_and_show_formulas_and_described_pictures(site):
    for path in site.rglob('*.html'):
        text = path.read_text(encoding='utf-8')
        page, shown = Read(text), ''.join(Read(text).text)
        assert '<script' not in text and 'FORMULA' not in shown and '$$' not in shown, path.name
        assert all(page.alts), path.name
    hand = (site/'tutorials/contracam_by_hand.html').read_text(encoding='utf-8')
    assert hand.count('<math') > 10 and '<mfrac>' in hand

def test_pages_leave_out_what_is_hidden_and_fold_answers(site):
    page = (site/'tutorials/contracam_by_hand.html').read_text(encoding='utf-8')
    assert page.count('<details class="answer">') == sum('code-fold: true' in source(cell) for cell in read(ROOT/'nbs/tutorials/contracam_by_hand.ipynb')['cells'])
    for path in site.rglob('*.html'): assert not re.search(r'#<?/?[^|\n]{0,30}\| ?(hide|export|slow|echo)\b', path.read_text(encoding='utf-8')), path.name

def test_the_first_page_lists_all_pages_with_a_line_about_each(site):
    page = (site/'index.html').read_text(encoding='utf-8')
    cards = re.findall(r'<li><a href="([^"]+)"><b>([^<]+)</b><span>(.*?)</span></a></li>', page)
    assert len(cards) == len(NOTEBOOKS) - 1
    assert [link for link, title, line in cards if not title or not line] == []

def test_formulas_are_told_from_code_and_prices():
    prose = tool('docs').prose
    assert prose('so $x_1$ and `$HOME` and\n\n```\n$$a$$\n```').count('<math') == 1
    assert '<math' not in prose('it costs $5 or $6')
    assert prose('$$\\frac{a}{b}$$').count('display="block"') == 1
    assert 'href="../a.html#B"' in prose('[a](../a.ipynb#B)') and 'x.org/a.ipynb' in prose('[a](https://x.org/a.ipynb)')

# ---- links between notebooks

def test_check_names_links_that_lead_nowhere():
    check = tool('check')
    cell = lambda *lines: dict(cell_type='markdown', source=['\n'.join(lines)])
    here = {Path('nbs/tutorials/mine.ipynb'): dict(cells=[cell('# Mine', '## A `b` c', '[x](../00_core.ipynb) [y](#A-b-c) [z](mine.ipynb#Mine) [w](https://example.org/none)'),
                                                            cell('```', '[not](a_link.md)', '```', 'nor `[is](this)`')])}
    assert [line for line in check.broken_links(here) if 'mine.ipynb' in line] == []
    here[Path('nbs/tutorials/mine.ipynb')]['cells'].append(cell('[a](gone.ipynb) [b](#nowhere) <img src="gone.png">'))
    assert [line for line in check.broken_links(here) if 'mine.ipynb' in line] == [
        'nbs/tutorials/mine.ipynb: a link leads nowhere: gone.ipynb', 'nbs/tutorials/mine.ipynb: no heading of mine.ipynb is #nowhere',
        'nbs/tutorials/mine.ipynb: a link leads nowhere: gone.png']

# ---- tutorials

def test_there_are_tutorials(): assert len(TUTORIALS) >= 5

@pytest.mark.parametrize('path', TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_has_exercises_with_answers_that_run(path):
    cells = read(path)['cells']
    text = '\n\n'.join(source(cell) for cell in cells if cell['cell_type'] == 'markdown')
    exercises = re.findall(r'^(\d+)\. \*\*', text.split('## Exercises')[1].split('## Answers')[0], re.M)
    answers = re.findall(r'^### Answer (\d+)$', text.split('## Answers')[1], re.M)
    assert len(exercises) >= 2 and exercises == answers == [str(n + 1) for n in range(len(exercises))]
    starts = [n for n, cell in enumerate(cells) if cell['cell_type'] == 'markdown' and re.search(r'^### Answer \d+\s*\Z', source(cell), re.M)]
    assert len(starts) == len(exercises)
    for start in starts:
        code, told = cells[start + 1], cells[start + 2]
        assert code['metadata'] == {'jupyter': {'outputs_hidden': True, 'source_hidden': True}}                          # folded in JupyterLab…
        assert source(code).startswith('#| code-fold: true\n')                                                           # …and in the static pages
        assert not re.search(r'^#\s*\|\s*(slow|gpu|notest|eval)', source(code), re.M) and code['outputs']                # runs with the others
        assert source(told).startswith('<details><summary>') and '</details>' in source(told)

@pytest.mark.parametrize('path', TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_exports_nothing_and_counts_its_figures(path):
    cells = read(path)['cells']
    assert not any(re.search(r'^#\s*\|\s*(export|default_exp)', source(cell), re.M) for cell in cells)
    assert re.match(r'# .+\n\n> .+', source(cells[0]))
    numbers = [int(number) for cell in cells if cell['cell_type'] == 'markdown' for number in re.findall(r'^\*Figure (\d+)\.', source(cell), re.M)]
    assert numbers and numbers == list(range(1, len(numbers) + 1))
