"""The look of the report: dark on white, wide tables scroll, prints well."""

STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #5b6470; --line: #d9dee4; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 60px; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 36px 0 10px; padding-bottom: 4px; border-bottom: 2px solid var(--line); }
h3 { font-size: 16px; margin: 22px 0 6px; overflow-wrap: anywhere; }
p { max-width: 80ch; }
.lead { color: var(--soft); margin-top: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); gap: 18px; }
figure { margin: 0 0 14px; }
figcaption { font-weight: 600; margin-bottom: 2px; }
svg, img { width: 100%; height: auto; }
.scroll { overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px; margin: 18px 0; }
.tile { border: 1px solid var(--line); border-radius: 6px; padding: 10px 14px; }
.tile strong { display: block; font-size: 21px; white-space: nowrap; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
.caption { color: var(--soft); font-size: 14px; margin: 14px 0 4px; }
th, td { padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .texts2 :is(th, td):nth-child(2) { text-align: left; }
th { color: var(--soft); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; font-size: 14px; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
details { margin: 8px 0; }
summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; background: #f5f7f9; padding: 12px; font-size: 13px; border-radius: 4px; }
.warning { border-left: 4px solid #d55e00; padding-left: 12px; }
@media (max-width: 560px) { dl { grid-template-columns: 1fr; } dd { margin-bottom: 6px; } }
@media print { details { display: block; } .charts { grid-template-columns: 1fr 1fr; } }
"""
