"""The report's style sheet: system fonts, light and dark, readable at the width of a phone."""

SERIES = 9  # colours, dashes and markers repeat after this many series

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1a1d23; --soft: #5a6270; --line: #dfe2e8; --paper: #ffffff; --panel: #f5f6f9;
  --accent: #0b5cad;
  --s0: #0b6fb8; --s1: #d0560a; --s2: #0a8a66; --s3: #a8478b;
  --s4: #96700a; --s5: #5b53c4; --s6: #4c545f; --s7: #8a4b22; --s8: #c8102e;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ink: #e7e9ee; --soft: #9da6b4; --line: #31363f; --paper: #14161a; --panel: #1d2026;
    --accent: #7fbcf5;
    --s0: #5fb4f0; --s1: #f39a5f; --s2: #42cda3; --s3: #e49bcb;
    --s4: #e8c24a; --s5: #a9a3f7; --s6: #c3c9d3; --s7: #cf9d74; --s8: #ff7d85;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 1100px; padding: 3rem 1.5rem 5rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 0.5rem; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 4rem 0 0.75rem; scroll-margin-top: 1rem; }
p { max-width: 46rem; margin: 0.75rem 0; }
a { color: var(--accent); text-underline-offset: 0.15em; }
.summary { color: var(--soft); font-size: 1.05rem; }
nav { margin: 1.25rem 0; display: flex; flex-wrap: wrap; gap: 0 1.25rem; }
nav a { padding: 0.25rem 0; }
figure { margin: 1.75rem 0; }
figcaption, caption {
  text-align: left; color: var(--soft); font-size: 0.9rem; padding: 0 0 0.6rem; max-width: 46rem;
}
.scroll { overflow: auto; max-width: 100%; }
div.scroll { background:  /* shade at an edge beyond which there is more */
  linear-gradient(90deg, var(--paper) 40%, transparent) 0 0 / 2rem 100% no-repeat local,
  linear-gradient(270deg, var(--paper) 40%, transparent) 100% 0 / 2rem 100% no-repeat local,
  linear-gradient(90deg, var(--line), transparent) 0 0 / 0.8rem 100% no-repeat scroll,
  linear-gradient(270deg, var(--line), transparent) 100% 0 / 0.8rem 100% no-repeat scroll; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 0.75rem;
  margin: 2rem 0; padding: 0; }
.tile { background: var(--panel); border-radius: 10px; padding: 0.9rem 1.1rem; }
.tile dt { color: var(--soft); font-size: 0.85rem; }
.tile dd { margin: 0; font-size: 1.7rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile small { display: block; color: var(--soft); font-size: 0.8rem; font-weight: 400; }

table { border-collapse: collapse; font-size: 0.93rem; }
.data th, .data td { padding: 0.4rem 1.4rem 0.4rem 0; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--line); }
.data thead th { color: var(--soft); font-weight: 500; border-bottom: 1.5px solid var(--soft); }
.data tbody th { font-weight: 500; }
.data thead th { vertical-align: bottom; line-height: 1.35; min-width: 3.5rem; }
.data td.figure { white-space: nowrap; }
.data .figure { text-align: right; font-variant-numeric: tabular-nums; }
.data th:last-child, .data td:last-child { padding-right: 0.25rem; }

.facts { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: 0 1.5rem;
  margin: 0.75rem 0;
  font-size: 0.9rem; }
.facts dt { color: var(--soft); overflow-wrap: anywhere; padding: 0.2rem 0; }
.facts dd { margin: 0; overflow-wrap: anywhere; padding: 0.2rem 0;
  font-variant-numeric: tabular-nums; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--soft); font-size: 0.9rem; padding: 0.25rem 0; }
pre { background: var(--panel); border-radius: 10px; padding: 1rem; font-size: 0.8rem;
  line-height: 1.45;
  margin: 0.75rem 0; max-height: 28rem; }

.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
  gap: 0 2.5rem; align-items: start; }
.charts > .chart { margin: 1rem 0; }
.chart > svg { display: block; width: 100%; max-width: 560px; height: auto; }
.chart text { fill: var(--soft);
  font: 15px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.chart text.value { fill: var(--ink); font-variant-numeric: tabular-nums; }
.chart text.group { fill: var(--ink); }
.grid { stroke: var(--line); stroke-width: 1; }
.axis { stroke: var(--soft); stroke-width: 1; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }

.legend { display: flex; flex-wrap: wrap; gap: 0.3rem 1.1rem; margin: 0.6rem 0 0; padding: 0;
  list-style: none;
  font-size: 0.88rem; }
.legend li { display: inline-flex; align-items: center; gap: 0.45rem; }
.legend svg { height: 14px; flex: none; }
.swatch { width: 1em; height: 1em; border-radius: 3px; flex: none; border: 1px solid var(--soft); }
.scale { display: flex; align-items: center; gap: 0.6rem; font-size: 0.88rem;
  color: var(--soft); margin: 0.6rem 0; }
.scale span { white-space: nowrap; }
.scale i { display: block; flex: 0 1 9rem; height: 0.75rem; border-radius: 3px; }

.pictures .scroll { max-height: 92vh; border: 1px solid var(--line); border-radius: 10px; }
.pictures table { border-collapse: separate; border-spacing: 0; font-size: 0.82rem; }
.pictures th, .pictures td { padding: 0.35rem; text-align: left; vertical-align: top; }
.pictures thead th { position: sticky; top: 0; z-index: 1; background: var(--paper);
  font-weight: 500;
  color: var(--soft); vertical-align: bottom; line-height: 1.25; padding-top: 0.6rem;
  border-bottom: 1px solid var(--line); }
.pictures tbody th { font-weight: 400; }
.pictures th:first-child, .pictures td:first-child { padding-left: 0.75rem; }
.pictures img { display: block; border-radius: 4px; background: var(--panel); }
.pictures small { display: block; color: var(--soft); font-size: 0.78rem; line-height: 1.3; padding-top: 0.2rem;
  max-width: 128px; overflow-wrap: anywhere; }
.pixelated { image-rendering: pixelated; }

@media (max-width: 600px) {
  body { padding: 1.75rem 1rem 3rem; }
  h1 { font-size: 1.6rem; }
  h2 { margin-top: 3rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 0.6rem; }
  .tile { padding: 0.7rem 0.85rem; }
  .tile dd { font-size: 1.4rem; }
  .chart text { font-size: 17px; }
  .data th, .data td { padding-right: 1rem; }
  .facts { grid-template-columns: 1fr; }
  .facts dd { padding: 0 0 0.5rem; }
}
@media (max-width: 460px) {
  .chart text { font-size: 19.1px; }  /* a chart drawn 520 wide is shown 328 wide: 12 pixels */
}
@page { margin: 15mm; }
@media print {
  .swatch, .scale i { print-color-adjust: exact; }
  :root { color-scheme: light; }
  body { max-width: none; padding: 0; }
  figure, tr { break-inside: avoid; }
  .pictures { break-inside: auto; }
  .pictures img { max-width: 72px; height: auto; }
  .pictures small { max-width: 72px; }
  .scroll, .pictures .scroll, pre { max-height: none; overflow: visible; }
  nav { display: none; }
}
"""
