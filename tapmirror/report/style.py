# SPDX-License-Identifier: Apache-2.0
"""The style sheet of the page: both colour schemes, from a phone to a wide screen, and for paper."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b2430;--dim:#5d6978;--rule:#e2e6eb;--p:#3b6fc4;
 --s:#e08a1e;--good:#1d8a55;--bad:#c9323a;--open:#9a7400;--goodbg:#e3f4ea;--badbg:#fbe6e6;--openbg:#fbf2d5;
 --code:#f0f2f5;--over:#c9323a1c}
@media(prefers-color-scheme:dark){:root{--bg:#11151a;--card:#1a2027;--ink:#e5eaf0;--dim:#97a4b3;--rule:#2c343e;
 --p:#6b9cf0;--s:#f0a544;--good:#4cc38a;--bad:#f2666d;--open:#e0b93f;--goodbg:#15301f;--badbg:#3a1a1d;
--openbg:#332a0f; --code:#242c35;--over:#f2666d26}
}*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif; -webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:20px 16px 48px}h1{font-size:1.15rem;font-weight:600;margin:0 0 14px}
h2{font-size:1.05rem;margin:34px 0 10px}h3{font-size:.85rem;font-weight:600;margin:0 0 8px;color:var(--dim)}
.num,td.n{font-variant-numeric:tabular-nums}
.verdict{border-radius:14px;padding:18px 20px;display:grid;gap:2px 18px;grid-template-columns:auto 1fr;
align-items:center}
h1,.ep .name{overflow-wrap:anywhere;max-height:9em;overflow-y:auto}
.verdict b{font-size:1.9rem;letter-spacing:.02em;line-height:1.1}.verdict p{margin:0;overflow-wrap:anywhere}
.verdict+.verdict{margin-top:8px}.verdict h2{margin:0;overflow-wrap:anywhere}
.one{margin-top:52px;padding-top:22px;border-top:3px solid var(--rule)}
.verdict.good{background:var(--goodbg)}.verdict.good b{color:var(--good)}.verdict.bad{background:var(--badbg)}
.verdict.bad b{color:var(--bad)}.verdict.open{background:var(--openbg)}.verdict.open b{color:var(--open)}
.grid3,.grid2,.tiles{display:grid;gap:14px}
.grid3{grid-template-columns:repeat(auto-fit,minmax(280px,1fr));margin-top:14px}
.grid2{grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr))}
.tiles{grid-template-columns:repeat(3,1fr);margin-top:14px}.tiles.five{grid-template-columns:repeat(5,1fr)}
.card{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:14px 16px;min-width:0}
.big{font-size:1.2rem;font-weight:600;line-height:1.35}.tile small,.dim{color:var(--dim)}
small{font-size:.82rem}
.legend{display:flex;gap:16px;margin:0 0 10px;color:var(--dim);font-size:.88rem;flex-wrap:wrap}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px}
i.p{background:var(--p)}i.s{background:var(--s)}svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font:11px system-ui,sans-serif;fill:var(--dim)}svg text.value{fill:var(--ink)}
svg text.strong{fill:var(--ink);font-weight:600}svg text.on{fill:#fff;font-weight:600}.hit{fill:transparent}
g:hover>.hit{fill:var(--rule)}.p{fill:var(--p)}.s{fill:var(--s)}.good{fill:var(--good)}.bad{fill:var(--bad)}
.open{fill:var(--open)}.soft{opacity:.32}.over{fill:var(--over)}.grid,.axis{stroke:var(--rule);stroke-width:1}
.limit{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:3 2}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}.line.p{stroke:var(--p);fill:none}
.line.s{stroke:var(--s);fill:none}.line.p99{stroke-dasharray:4 2.5}.st1{fill:#7a8794}.st2{fill:#2c9a63}
.st3{fill:#4d86c9}.st4{fill:#b8860b}.st5{fill:#cf3b43}.stn,.st0,.st6,.st7,.st8,.st9{fill:#8a2be2}
.bar{display:flex;justify-content:space-between;gap:8px;align-items:baseline;flex-wrap:wrap}
details{background:var(--card);border:1px solid var(--rule);border-radius:12px;margin:8px 0}
summary{padding:12px 16px;cursor:pointer;list-style:none}summary::-webkit-details-marker{display:none}
summary:focus-visible{outline:2px solid var(--p);outline-offset:2px;border-radius:12px}
.ep{display:grid;grid-template-columns:minmax(0,1.7fr) repeat(4,minmax(84px,1fr));gap:4px 14px;align-items:center}
.ep .name{font-weight:600}
.ep .name::before{content:"▸";color:var(--dim);display:inline-block;width:1.1em;transition:transform .12s}
details[open]>summary .name::before{transform:rotate(90deg)}.ep small{display:block;color:var(--dim)}
.tag{display:inline-block;border-radius:99px;padding:1px 9px;font-size:.8rem;font-weight:600}
.tag.bad{background:var(--badbg);color:var(--bad)}.tag.open{background:var(--openbg);color:var(--open)}
.tag.good{background:var(--goodbg);color:var(--good)}.red{color:var(--bad);font-weight:600}
.body{padding:2px 16px 16px;border-top:1px solid var(--rule)}.body>.grid2{margin-top:14px}
.field{padding:12px 0 4px;border-top:1px solid var(--rule)}.field:first-of-type{border-top:0}
.path{font:600 .9rem ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.sample{margin:8px 0 0}.pair{display:grid;gap:8px;grid-template-columns:1fr 1fr;margin:6px 0}
.pair>div{min-width:0;border-left:3px solid var(--p);padding-left:9px}.pair>div+div{border-color:var(--s)}
code,pre{font:.82rem/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--code);border-radius:8px;padding:9px 11px;margin:4px 0 0;white-space:pre-wrap;
overflow-wrap:anywhere; max-height:22em;overflow-y:auto}
.more>summary::before{content:"▸";color:var(--dim);display:inline-block;width:1.1em}
.more[open]>summary::before{content:"▾"}.more>details{margin:8px 10px}.codes{margin-top:8px;font-size:.88rem}
.codes td{padding:1px 0 1px 12px}.codes td:first-child{padding-left:0}
.sample details{border:0;background:none;margin:2px 0}
.sample summary{padding:2px 0;color:var(--dim);font-size:.85rem}.sample summary::before{content:"▸ "}
.sample details[open]>summary::before{content:"▾ "}table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:4px 12px 4px 0;font-weight:400;vertical-align:top;overflow-wrap:anywhere}
td.n{text-align:right;white-space:nowrap}footer{margin-top:34px;color:var(--dim);font-size:.86rem}
@media(max-width:640px){main{padding:12px 10px 32px}.verdict{grid-template-columns:1fr;padding:14px 16px}
.ep{grid-template-columns:repeat(4,minmax(0,1fr));gap:6px 8px;font-size:.88rem}.ep .name{grid-column:1/-1}
.pair{grid-template-columns:1fr}.tiles,.tiles.five{grid-template-columns:1fr 1fr}.card{padding:12px}
.grid2{grid-template-columns:1fr}.big{font-size:1.15rem}}@media print{body{background:#fff}
details{break-inside:avoid}}
"""
