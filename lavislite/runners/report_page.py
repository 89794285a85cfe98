"""The report's page: ``PAGE.format(title=..., body=...)``."""

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --paper: #fff; --ink: #24292f; --soft: #68717c; --line: #d5dae0;
  --card: #f6f8fa; --true: #1c7d5f; --said: #7a4fb8; --partly: #8f6300; --wrong: #b3302f; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #171b21; --ink: #dfe4ea; --soft: #98a2ae;
  --line: #3b434d; --card: #1f252d; --true: #54c6a2; --said: #b394e6; --partly: #e0b15c;
  --wrong: #f08a85; }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1080px; margin: 0 auto; padding: 1.5rem; }}
h1 {{ font-size: 1.6rem; }}
h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .6rem; }}
p, small, summary {{ color: var(--soft); }}
.wide {{ width: 100%; height: auto; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .9rem; text-align: right; border-bottom: 1px solid var(--line); }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
th {{ color: var(--soft); font-weight: 600; padding-top: .9rem; }}
details {{ margin-top: 1.2rem; }}
pre {{ background: var(--card); padding: 1rem; overflow-x: auto; font-size: .85rem; }}
article {{ display: flex; flex-wrap: wrap; gap: 1.2rem; background: var(--card); padding: 1rem;
  border-radius: 8px; margin-bottom: .9rem; border-left: 5px solid var(--line); }}
article.right {{ border-color: var(--true); }}
article.partly {{ border-color: var(--partly); }}
article.wrong {{ border-color: var(--wrong); }}
strong {{ display: block; color: var(--soft); white-space: pre-wrap; }}
strong.right, li.right span, li.right b {{ color: var(--true); }}
strong.partly, li.partly span, li.partly b {{ color: var(--partly); }}
strong.wrong, li.wrong span, li.wrong b {{ color: var(--wrong); }}
li.right span, li.partly span, li.wrong span, li.question span {{ font-weight: 600; }}
.pictures {{ display: flex; gap: .5rem; }}
.pictures img {{ width: 150px; height: 150px; object-fit: contain; }}
article > div:last-child {{ flex: 1 1 24rem; }}
ul {{ list-style: none; margin: .2rem 0 0; padding: 0; font-size: .95rem; }}
li {{ display: grid; grid-template-columns: 1.2rem 4rem 1fr; }}
li span {{ overflow-wrap: anywhere; }}
li i {{ font-style: normal; color: var(--soft); font-variant-numeric: tabular-nums; }}
li.true span, li.true b {{ color: var(--true); font-weight: 600; }}
li.said span {{ color: var(--said); font-style: italic; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
