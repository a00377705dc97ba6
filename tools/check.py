"""Are notebooks, package and README in step, and the notebooks fit to publish? Changes nothing; exit 1 and say what to do if not.

With --write, bring the notebooks and the package in step: clean, export, drop modules that no notebook makes any more."""
import json, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = 'settings.ini', 'nbs', 'oacl'
NOTEBOOK_MB, ALL_MB = 1.5, 15
MACHINE_PATH = re.compile(r'(?<![\w.~/-])/(?:root|home|work|tmp|Users|mnt)/[\w.-]+')
EMBEDDED = re.compile(r'base64,[A-Za-z0-9+/=\s]+')
LINK = re.compile(r'(?:\]\(|\b(?:src|href)=")([^)\s"]+)')

# ---- files

def ours() -> list: # paths from the root of the settings, notebooks and package files that git has or would take
    if (ROOT/'.git').exists() and shutil.which('git'):
        listing = subprocess.run(['git', 'ls-files', '-zco', '--exclude-standard', '--', *PARTS],
                                 cwd=ROOT, check=True, capture_output=True, text=True).stdout
        names = [Path(name) for name in listing.split('\0') if name]
    else: names = [path.relative_to(ROOT) for part in PARTS for path in [ROOT/part, *(ROOT/part).rglob('*')]]
    hidden = lambda name: any(part == '__pycache__' or part.startswith('.ipynb_checkpoints') for part in name.parts)
    return sorted({name for name in names if not hidden(name) and (ROOT/name).is_file()})

def notebooks() -> dict: # path from the root -> the notebook; stops where one cannot be read
    found = {}
    for name in ours():
        if name.suffix != '.ipynb': continue
        try: found[name] = json.loads((ROOT/name).read_text(encoding='utf-8'))
        except ValueError as error: sys.exit(f'{name} is not a notebook ({error}); mend it, or take it back from git')
    return found

# ---- in step

def fresh(
    folder, # an empty folder, filled with settings, notebooks and package as a clean export makes them
):
    for name in ours():
        if name.parts[0] == 'oacl' and name.suffix == '.py' and name != Path('oacl/__init__.py'): continue
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT/name, folder/name)
    env = {key: value for key, value in os.environ.items() if key != 'IN_TEST'}  # with it nbdev_export would do nothing
    steps = 'from nbdev.clean import nbdev_clean; nbdev_clean(); from nbdev.doclinks import nbdev_export; nbdev_export()'
    done = subprocess.run([sys.executable, '-c', steps], cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode: sys.exit(f'export failed; mend the notebook:\n{done.stdout}{done.stderr}'.rstrip())

def comparable(name): return name.suffix == '.ipynb' or (name.parts[0] == 'oacl' and name.suffix == '.py')

def differences(
    folder, # what `fresh` filled
) -> list: # (path from the root, 'changed' | 'missing' | 'stale')
    here = {name for name in ours() if comparable(name)}
    there = {path.relative_to(folder) for part in PARTS for path in (folder/part).rglob('*')}
    there = {name for name in there if comparable(name)}
    changed = [name for name in here & there if (ROOT/name).read_bytes() != (folder/name).read_bytes()]
    kinds = [(changed, 'changed'), (there - here, 'missing'), (here - there, 'stale')]
    return sorted((name, kind) for names, kind in kinds for name in names)

def origin(
    path, # a module
) -> str: # the notebook that its header names, from the root
    found = re.search(r'File to edit: (?:\.\./)*(\S+\.ipynb)', path.read_text(encoding='utf-8'))
    return found[1] if found else ''

def in_step(
    write=False, # mend instead of telling
) -> list: # complaints, one line each
    complaints = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        fresh(folder)
        for name, kind in differences(folder):
            if write: mend(folder, name, kind)
            elif kind == 'stale': complaints.append(f'{name}: no notebook exports it (any more)')
            elif name.suffix == '.ipynb': complaints.append(f'{name}: not clean (execution counts or metadata left in it)')
            else: complaints.append(f"{name}: not what {origin(folder/name) or 'settings.ini and the notebooks'} exports")
    return complaints

def mend(folder, name, kind):
    print(f"{'removed' if kind == 'stale' else 'wrote'} {name}")
    if kind == 'stale': (ROOT/name).unlink()
    else:
        (ROOT/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder/name, ROOT/name)

def readme_in_step() -> list: # complaints
    done = subprocess.run([sys.executable, ROOT/'tools/readme.py', '--check'], capture_output=True, text=True)
    return [done.stderr.strip()] if done.returncode else []

# ---- fit to publish

def texts(
    cell, # of a notebook
): # (where, text) of all that a reader sees in it, embedded pictures left out
    yield 'its source', ''.join(cell['source'])
    for output in cell.get('outputs', []):
        data = {kind: value for kind, value in output.get('data', {}).items() if 'svg' in kind or not kind.startswith('image/')}
        for value in [output.get('text', ''), *data.values()]:
            yield 'its output', EMBEDDED.sub('', json.dumps(value) if isinstance(value, dict) else ''.join(value))

def blemishes(
    cell, # of a notebook
): # what must not be published
    for output in cell.get('outputs', []):
        if output['output_type'] == 'error': yield f"keeps an error: {output.get('ename')}"
        if output.get('name') == 'stderr': yield 'keeps text from stderr (a warning or a progress bar)'
        if any('jupyter.widget' in kind for kind in output.get('data', {})):
            yield "keeps a widget's view, which shows nothing without its state"
    for where, text in texts(cell):
        if found := MACHINE_PATH.search(text): yield f"names a path of one machine in {where}: {found[0]}"

def fit(
    found, # what `notebooks` returned
) -> list: # complaints, one line each
    complaints, targets = [], {}
    for name, nb in found.items():
        size = (ROOT/name).stat().st_size / 1e6
        if size > NOTEBOOK_MB: complaints.append(f'{name}: {size:.1f} MB, more than {NOTEBOOK_MB}; make its pictures smaller')
        if 'widgets' in nb.get('metadata', {}): complaints.append(f'{name}: keeps widget state; clear it')
        for number, cell in enumerate(nb['cells']):
            complaints += [f'{name}: cell {number} {what}; clear or change it' for what in blemishes(cell)]
            if cell['cell_type'] == 'code' and (target := re.search(r'^#\s*\|\s*default_exp\s+(\S+)', ''.join(cell['source']), re.M)):
                other = targets.setdefault(target[1], name)
                if other != name: complaints.append(f'{name}: exports oacl.{target[1]}, and so does {other}; rename one')
    total = sum((ROOT/name).stat().st_size for name in found) / 1e6
    if total > ALL_MB: complaints.append(f'nbs: {total:.1f} MB of notebooks, more than {ALL_MB}; make pictures smaller')
    return complaints

# ---- links

FENCED = re.compile(r'^```.*?^```', re.M | re.S)
INLINE = re.compile(r'`+[^`\n]+`+')

def prose(nb) -> str: # all text cells of a notebook, without blocks of code
    return FENCED.sub('', '\n'.join(''.join(cell['source']) for cell in nb['cells'] if cell['cell_type'] == 'markdown'))

def anchors(nb) -> set: # what a link to a heading of a notebook may name
    return {re.sub(r'\s', '-', re.sub(r'[*`]', '', heading).strip()) for heading in re.findall(r'^#{1,6} (.+)$', prose(nb), re.M)}

def broken_links(
    found, # what `notebooks` returned
) -> list: # complaints, one line each: relative links of notebooks and README.md that lead nowhere
    texts = {name: prose(nb) for name, nb in found.items()}
    if (ROOT/'README.md').is_file(): texts[Path('README.md')] = FENCED.sub('', (ROOT/'README.md').read_text(encoding='utf-8'))
    complaints = []
    for name, text in texts.items():
        for link in LINK.findall(INLINE.sub('', text)):
            if re.match(r'\w+:', link): continue
            path, _, anchor = link.partition('#')
            target = Path(os.path.normpath(name.parent/path)) if path else name
            if target not in found and not (ROOT/target).exists(): complaints.append(f'{name}: a link leads nowhere: {link}')
            elif anchor and target in found and anchor not in anchors(found[target]): complaints.append(f'{name}: no heading of {target.name} is #{anchor}')
    return complaints

def main(write):
    found = notebooks()
    if write: return in_step(write=True)
    apart, unfit = in_step() + readme_in_step(), fit(found) + broken_links(found)
    for line in apart + unfit: print(line)
    if apart: print('To bring notebooks, package and README in step, run: make export')
    if not apart + unfit: print(f'{len(found)} notebooks, the package and README.md are in step.')
    return apart + unfit

if __name__ == '__main__': sys.exit(1 if main(write=sys.argv[1:] == ['--write']) else 0)
