"""The notebooks as static pages in _docs, for a machine without Quarto: navigation, links between pages, formulas, nothing from the network."""
import base64, html, posixpath, re, shutil, sys
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from latex2mathml.converter import convert as mathml
from nbconvert.filters import Highlight2HTML, ansi2html
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parent.parent
NBS, DOCS = ROOT/'nbs', ROOT/'_docs'
TOUR = ('a_tour_in_ten_minutes', 'contracam_by_hand', 'the_two_biases', 'your_own_photos', 'your_own_model', 'reproduce_the_paper')   # in the order to read them
GROUPS = {'Tutorials': 'tutorials', 'Demos': 'demos', 'Library': '', 'Evaluation': 'eval'}                                            # heading -> folder

# ---- pages

@dataclass
class Page:
    "A notebook and what is said of it elsewhere."
    path:Path # of the notebook
    nb:nbformat.NotebookNode = field(repr=False)

    @property
    def link(self): return self.path.relative_to(NBS).with_suffix('.html').as_posix()      # from the first page

    @property
    def title(self): return self._head(r'^# (.+)$') or self.path.stem

    @property
    def subtitle(self): # the quoted line, or the first sentence
        return self._head(r'^> (.+(?:\n> .+)*)').replace('\n> ', ' ') or self._head(r'\A# .+\n+([^#>|].*?[.!?])(?=\s|\Z)')

    def _head(self, pattern):
        found = re.search(pattern, self.nb.cells[0].source, re.M) if self.nb.cells else None
        return found[1].strip() if found else ''

def is_shown(path): return not any(part[0] in '._' for part in path.relative_to(NBS).parts)

def pages() -> dict: # heading of the group -> its pages, in order; the first page stands alone
    found = {path.relative_to(NBS): Page(path, nbformat.read(path, as_version=4)) for path in sorted(NBS.rglob('*.ipynb')) if is_shown(path)}
    groups = {'': [found.pop(Path('index.ipynb'))]}
    order = lambda name: (TOUR.index(name.stem) if name.stem in TOUR else len(TOUR), name.name)
    for heading, folder in GROUPS.items():
        groups[heading] = [found.pop(name) for name in sorted((name for name in found if name.parent == Path(folder)), key=order)]
    groups['Other'] = list(found.values())
    return {heading: group for heading, group in groups.items() if group}

# ---- cells

CODE = re.compile(r'(^```.*?^```|`+[^`\n]+`+)', re.M | re.S)
MATH = re.compile(r'\$\$(.+?)\$\$|(?<![\\$])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\d)', re.S)
DIRECTIVE = re.compile(r'^#\s*\|.*\n?', re.M)
highlight = Highlight2HTML(pygments_lexer='python3')

def prose(
    text, # Markdown with formulas
) -> str: # HTML; links to notebooks become links to pages
    formulas = []
    def keep(match):
        formulas.append(mathml(match[1] or match[2], display='block' if match[1] else 'inline'))
        return f'FORMULA{len(formulas) - 1}X'
    parts = CODE.split(text)
    parts[::2] = [MATH.sub(keep, part) for part in parts[::2]]                          # no formula inside code
    page = markdown2html_mistune(''.join(parts))
    page = re.sub(r'href="(?!\w+:)([^"#]+)\.ipynb', r'href="\1.html', page)
    page = re.sub(r'<table>', '<div class="wide"><table>', page).replace('</table>', '</table></div>')
    return re.sub(r'FORMULA(\d+)X', lambda match: formulas[int(match[1])], page)

def directive(cell, name): # value of `#| name: value` in a cell, '' for the bare flag, None without it
    found = re.search(rf'^#\s*\|\s*{name}\b:?[ \t]*(.*)$', cell.source, re.M)
    return found and found[1].strip()

def output(
    out, # of a code cell
    alt, # what its picture shows
) -> str:
    if out.output_type == 'stream': return f'<pre class="out">{ansi2html(out.text)}</pre>'
    data = out.get('data', {})
    for kind in ('image/svg+xml', 'image/png', 'image/jpeg'):
        if kind not in data: continue
        source = base64.b64encode(data[kind].encode()).decode() if 'svg' in kind else data[kind].replace('\n', '')
        return f'<div class="wide"><img src="data:{kind};base64,{source}" alt="{html.escape(alt, quote=True)}"></div>'
    if 'text/html' in data: return f'<div class="wide out">{data["text/html"]}</div>'
    if 'text/markdown' in data: return prose(data['text/markdown'])
    return f'<pre class="out">{ansi2html(data.get("text/plain", ""))}</pre>'

def caption(
    cells, # of a notebook
    number, # of a code cell
) -> str: # what is said of its picture: its directive, or the caption that follows it
    if described := directive(cells[number], 'fig-alt'): return described
    after = cells[number + 1].source if number + 1 < len(cells) and cells[number + 1].cell_type == 'markdown' else ''
    return ' '.join(found[1].split()) if (found := re.match(r'\*([^*]+)\*', after)) else 'figure'

def cell_html(cells, number) -> str:
    cell = cells[number]
    if cell.cell_type == 'markdown': return f'<div class="prose">{prose(cell.source)}</div>'
    if cell.cell_type != 'code' or directive(cell, 'hide') is not None: return ''
    source = DIRECTIVE.sub('', cell.source).strip()
    code = highlight(source) if source and directive(cell, 'echo') != 'false' else ''
    body = code + ''.join(output(out, caption(cells, number)) for out in cell.outputs)
    if directive(cell, 'code-fold') == 'true': return f'<details class="answer"><summary>Open the answer</summary>{body}</details>'
    return f'<div class="code">{body}</div>' if body else ''

# ---- the site

STYLE = '''
:root { --page:#fcfcfb; --ink:#1d2129; --soft:#5c6470; --line:#dfe2e6; --box:#f4f5f6; --accent:#0173b2; --tint:#e9f3fa; }
@media (prefers-color-scheme: dark) {
  :root { --page:#15181d; --ink:#e4e6ea; --soft:#a3abb7; --line:#343a44; --box:#1d2128; --accent:#6cb8ea; --tint:#1b2e3d; } }
* { box-sizing:border-box; }
html { -webkit-text-size-adjust:100%; scroll-behavior:smooth; scroll-padding-top:1rem; }
body { margin:0; background:var(--page); color:var(--ink); font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif; }
a { color:var(--accent); text-underline-offset:.15em; }
.frame { display:grid; grid-template-columns:16rem minmax(0,1fr); max-width:84rem; margin:0 auto; }
.side { border-right:1px solid var(--line); padding:1.2rem 1rem 2rem 1.2rem; font-size:.93rem; position:sticky; top:0; height:100vh; overflow-y:auto; }
.side .brand { font-weight:700; font-size:1.15rem; text-decoration:none; color:var(--ink); }
.side h2 { font-size:.76rem; letter-spacing:.06em; text-transform:uppercase; color:var(--soft); margin:1.3rem 0 .35rem; }
.side ul { list-style:none; margin:0; padding:0; }
.side li a { display:block; padding:.16rem .5rem; margin-left:-.5rem; border-radius:6px; text-decoration:none; color:var(--ink); }
.side li a:hover, .side li a:focus-visible { background:var(--box); } .side li a[aria-current] { background:var(--tint); color:var(--accent); font-weight:600; }
main { padding:1.6rem 2.6rem 4rem; min-width:0; } main > * { max-width:50rem; }
h1 { font-size:2rem; line-height:1.2; letter-spacing:-.015em; margin:.2rem 0 .8rem; } h2 { font-size:1.4rem; line-height:1.3; margin:2.4rem 0 .6rem; } h3 { margin:1.8rem 0 .4rem; }
.prose > p, .prose > ul, .prose > ol { margin:.7rem 0; overflow-wrap:break-word; }
.anchor-link { text-decoration:none; opacity:0; padding-left:.3em; font-weight:400; } :is(h1,h2,h3,h4):hover .anchor-link, .anchor-link:focus { opacity:.6; }
blockquote { margin:.6rem 0 1.2rem; padding:.1rem 0 .1rem 1rem; border-left:4px solid var(--accent); color:var(--soft); font-size:1.08rem; }
code, pre { font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace; font-size:.86em; }
.prose :not(pre) > code { background:var(--box); border-radius:4px; padding:.08em .3em; overflow-wrap:anywhere; }
.code, .answer { margin:1.1rem 0; max-width:62rem; }
.highlight { background:var(--box); border:1px solid var(--line); border-radius:8px; } pre { margin:0; padding:.7rem .9rem; overflow-x:auto; line-height:1.5; tab-size:4; }
.highlight pre { background:none; } pre.out { padding:.5rem .9rem; border-left:3px solid var(--line); margin:.5rem 0 0 .4rem; color:var(--ink); }
img { display:block; max-width:100%; height:auto; background:#fff; border:1px solid var(--line); border-radius:8px; padding:.35rem; }
.prose img { margin:1rem auto; }
.wide { overflow-x:auto; margin:.8rem 0; } table { border-collapse:collapse; font-size:.93rem; font-variant-numeric:tabular-nums; }
th, td { padding:.38rem .75rem .38rem 0; text-align:left; border-bottom:1px solid var(--line); vertical-align:top; } th { color:var(--soft); font-weight:600; }
math { font-size:1.06em; } math[display=block] { display:block; margin:1.1rem 0; overflow-x:auto; overflow-y:hidden; padding:.15rem 0; }
details { border:1px solid var(--line); border-radius:8px; padding:.2rem .9rem; margin:1rem 0; } details[open] { padding-bottom:.8rem; }
summary { cursor:pointer; font-weight:600; padding:.35rem 0; color:var(--accent); }
.cards { display:grid; grid-template-columns:repeat(auto-fill,minmax(15rem,1fr)); gap:.8rem; padding:0; list-style:none; max-width:none; }
.cards a { display:block; height:100%; border:1px solid var(--line); border-radius:10px; padding:.75rem .95rem; text-decoration:none; color:var(--ink); background:var(--box); }
.cards a:hover, .cards a:focus-visible { border-color:var(--accent); } .cards b { display:block; color:var(--accent); } .cards span { font-size:.9rem; line-height:1.45; color:var(--soft); display:block; }
.steps { display:flex; justify-content:space-between; gap:1rem; margin-top:3rem; padding-top:1rem; border-top:1px solid var(--line); }
.menu { display:none; }
@media (max-width:60rem) { .frame { display:block; } .side { display:none; } .menu { display:block; position:sticky; top:0; z-index:2; margin:0; border:0; border-bottom:1px solid var(--line);
  border-radius:0; background:var(--page); padding:.1rem 1rem; } .menu[open] { max-height:100vh; overflow-y:auto; } .menu .side { display:block; position:static; height:auto; border:0; padding:0 0 1rem; }
  main { padding:1rem 1rem 3rem; } h1 { font-size:1.65rem; } html { scroll-padding-top:4rem; } .wide > img { max-width:40rem; } }      /* figures keep letters that can be read, and scroll */
@media print { .side, .menu, .steps, .anchor-link { display:none; } .frame { display:block; } }
'''

def styles() -> str: # of pages and code, light and dark
    light, dark = (HtmlFormatter(style=style).get_style_defs('.highlight') for style in ('friendly', 'github-dark'))
    code = '\n'.join(rule for rule in light.split('\n') if not re.match(r'\.highlight\s*\{|pre', rule))
    night = '\n'.join(rule for rule in dark.split('\n') if not re.match(r'\.highlight\s*\{|pre', rule))
    return f'{STYLE}\n{code}\n@media (prefers-color-scheme: dark) {{\n{night}\n}}\n'

def navigation(groups, page) -> str: # the list of all pages, seen from one of them
    link = lambda other: posixpath.relpath(other.link, posixpath.dirname(page.link) or '.')
    entry = lambda other: f'<li><a href="{link(other)}"{" aria-current=page" if other is page else ""}>{html.escape(other.title)}</a></li>'
    lists = ''.join(f'<h2>{heading}</h2><ul>{"".join(map(entry, group))}</ul>' for heading, group in groups.items() if heading)
    return f'<nav class="side" aria-label="All pages"><a class="brand" href="{link(groups[""][0])}">oacl</a>{lists}</nav>'

def contents(groups) -> str: # cards of all pages, for the end of the first one
    card = lambda page: f'<li><a href="{page.link}"><b>{html.escape(page.title)}</b><span>{re.sub("</?p>", "", prose(page.subtitle)).strip()}</span></a></li>'
    return ''.join(f'<h2 id="{heading}">{heading}</h2><ul class="cards">{"".join(map(card, group))}</ul>' for heading, group in groups.items() if heading)

def page_html(groups, page) -> str: # the whole page
    order = [other for group in groups.values() for other in group]
    place, up = order.index(page), posixpath.relpath('.', posixpath.dirname(page.link) or '.')
    link = lambda other: posixpath.relpath(other.link, posixpath.dirname(page.link) or '.')
    before = f'<a href="{link(order[place - 1])}">← {html.escape(order[place - 1].title)}</a>' if place else '<span></span>'
    after = f'<a href="{link(order[place + 1])}">{html.escape(order[place + 1].title)} →</a>' if place + 1 < len(order) else ''
    body = '\n'.join(filter(None, (cell_html(page.nb.cells, number) for number in range(len(page.nb.cells)))))
    if not place: body += contents(groups)
    described = html.escape(re.sub(r'[`*]', '', page.subtitle), quote=True)
    return f'''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="description" content="{described}">
<title>{html.escape(page.title)}{' · oacl' if place else ''}</title>
<link rel="stylesheet" href="{up}/style.css">
</head>
<body>
<details class="menu"><summary>oacl: all pages</summary>{navigation(groups, page)}</details>
<div class="frame">
{navigation(groups, page)}
<main>
{body}
<div class="steps">{before}{after}</div>
</main>
</div>
</body>
</html>
'''

def main(folder=DOCS):
    groups = pages()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder/'style.css').write_text(styles(), encoding='utf-8')
    for page in [page for group in groups.values() for page in group]:
        out = folder/page.link
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page_html(groups, page), encoding='utf-8')
    if (NBS/'images').is_dir(): shutil.copytree(NBS/'images', folder/'images')
    print(f'{sum(map(len, groups.values()))} pages: open {folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder}/index.html')

if __name__ == '__main__': main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS)
