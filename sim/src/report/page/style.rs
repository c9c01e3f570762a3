//! Colours and style: of drawings, by explicit rules without variables, as some renderers of SVG files
//! know none; and of the page around them.
//!
//! Series use the palette of Okabe and Ito ("Color Universal Design", 2008), which people with any
//! kind of colour blindness tell apart, darkened or lightened for contrast with the paper; heat maps
//! use cividis, which grows in lightness for all.

use std::fmt::Write as _;

/// How many series have a colour of their own; later ones begin anew.
pub const SERIES: usize = 7;

struct Theme {
    paper: &'static str,
    ink: &'static str,
    muted: &'static str,
    faint: &'static str,
    series: [&'static str; SERIES],
}

const LIGHT: Theme = Theme {
    paper: "#ffffff",
    ink: "#1d2430",
    muted: "#5b6575",
    faint: "#e3e7ee",
    series: ["#0072b2", "#d55e00", "#00835f", "#b0508a", "#d99000", "#4aa3d8", "#6b7280"],
};

const DARK: Theme = Theme {
    paper: "#151a22",
    ink: "#e8ecf3",
    muted: "#9aa5b5",
    faint: "#2a323f",
    series: ["#56b4e9", "#ff8f4d", "#2fc79b", "#e39bc4", "#f0c04a", "#9ed2f3", "#a4adbb"],
};

/// Cividis (Nuñez, Anderton, Renslow 2018) from known at once to known late.
const CIVIDIS: [(u8, u8, u8); 6] =
    [(255, 234, 70), (203, 186, 105), (149, 143, 120), (102, 105, 112), (49, 68, 107), (0, 32, 77)];

/// How many colours a heat map has.
pub const HEATS: usize = 12;

/// The rules that drawings need; once on a page.
pub fn drawing() -> String {
    let mut rules = String::from(
        "svg.plot{font-family:system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif}\
         .plot text{font-size:12px}.plot .title{font-size:15px;font-weight:600}\
         .plot .strong{font-weight:600;stroke-width:4;stroke-linejoin:round;paint-order:stroke}.plot .small{font-size:10.5px}\
         .plot .thick{stroke-width:2.5;fill:none}.plot .middle{stroke-width:1.6;fill:none}\
         .plot .thin{stroke-width:1;fill:none;opacity:.35}.plot .dashed{stroke-dasharray:5 4}\
         .plot .grid,.plot .axis{stroke-width:1;shape-rendering:crispEdges}\
         .plot .range{stroke-width:5;opacity:.28;stroke-linecap:round}.plot .leader{stroke-width:1;opacity:.7}.plot .event{stroke-width:1;stroke-dasharray:2 3}.plot .area{opacity:.82}.plot .band{opacity:.26}\
         .plot .seed{opacity:.55}.plot .cell{shape-rendering:crispEdges}\
         .plot .hover{fill:transparent;stroke:none}.plot .hover:hover{stroke:#ff8f4d;stroke-width:1.5}\n",
    );
    for heat in 0..HEATS {
        let _ = write!(rules, ".plot .h{heat}{{fill:{}}}", heat_colour(heat));
    }
    rules.push_str(&themed(&LIGHT));
    let _ = write!(rules, "\n@media screen and (prefers-color-scheme:dark){{{}}}", themed(&DARK));
    rules
}

fn themed(theme: &Theme) -> String {
    let Theme { paper, ink, muted, faint, series } = theme;
    let mut rules = format!(
        ".plot text{{fill:{muted}}}.plot .title,.plot .strong{{fill:{ink}}}.plot .paper{{fill:{paper}}}\
         .plot .grid{{stroke:{faint}}}.plot .axis{{stroke:{muted}}}.plot .event{{stroke:{muted}}}\
         .plot .mark{{fill:{paper};stroke:{muted}}}.plot .ink{{stroke:{ink}}}\
         .plot .never{{fill:{paper}}}.plot .strong{{stroke:{paper}}}.plot .hatch{{stroke:{muted}}}"
    );
    for (at, colour) in series.iter().enumerate() {
        let _ = write!(rules, ".plot .l{at}{{stroke:{colour}}}.plot .f{at}{{fill:{colour}}}");
    }
    rules
}

fn heat_colour(heat: usize) -> String {
    let at = heat as f64 / (HEATS - 1) as f64 * (CIVIDIS.len() - 1) as f64;
    let below = (at.floor() as usize).min(CIVIDIS.len() - 2);
    let part = at - below as f64;
    let mix = |from: u8, to: u8| (f64::from(from) + (f64::from(to) - f64::from(from)) * part).round() as u8;
    let ((r, g, b), (r2, g2, b2)) = (CIVIDIS[below], CIVIDIS[below + 1]);
    format!("#{:02x}{:02x}{:02x}", mix(r, r2), mix(g, g2), mix(b, b2))
}

/// The page's own style.
pub const PAGE: &str = "
:root{--paper:#fff;--card:#f6f8fb;--ink:#1d2430;--muted:#5b6575;--line:#dde3ec;--good:#00704f;--bad:#b53a00;--bar:#0072b2}
@media screen and (prefers-color-scheme:dark){:root{--paper:#151a22;--card:#1c232d;--ink:#e8ecf3;--muted:#9aa5b5;--line:#2f3846;--good:#2fc79b;--bad:#ff8f4d;--bar:#56b4e9}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif}
main{max-width:980px;margin:0 auto;padding:40px 28px 72px}
h1{font-size:30px;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em}
h2{font-size:20px;margin:44px 0 4px}
.question{font-size:18px;color:var(--muted);margin:0 0 18px}
.facts{color:var(--muted);font-size:14px;margin:0}
.verdict{display:inline-block;border-radius:99px;padding:2px 12px;font-size:14px;font-weight:600;border:1.5px solid;margin-right:10px}
.good{color:var(--good)}.bad{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(138px,1fr));gap:10px;margin:26px 0 8px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:13px 14px}
.tile b{display:block;font-size:22px;white-space:nowrap;line-height:1.2;letter-spacing:-.01em}
.tile span{color:var(--muted);font-size:13.5px;line-height:1.35;display:block;margin-top:3px}
figure{margin:0;overflow-x:auto}
figcaption,.note{color:var(--muted);font-size:15px;max-width:76ch;margin:0 0 12px}
svg.plot{display:block;width:100%;min-width:640px;height:auto;margin-top:8px}
figure h2,figcaption{position:sticky;left:0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14.5px;font-variant-numeric:tabular-nums;margin:10px 0}
th,td{text-align:right;padding:6px 10px;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0;white-space:normal}
th{color:var(--muted);font-weight:500;font-size:13px;white-space:normal;vertical-align:bottom}
td .bad{white-space:nowrap}
tr.total td{font-weight:600}
td.bar{width:32%;min-width:150px}
.track{position:relative;display:block;height:10px;border-radius:5px;background:var(--line);overflow:hidden}
.track i{position:absolute;inset:0 auto 0 0;border-radius:5px;background:var(--bar)}
.track i.over{background:var(--bad)}
.failure{border:1px solid var(--bad);border-left-width:5px;border-radius:8px;padding:14px 18px;margin:22px 0}
.failure h2{margin:0 0 4px;font-size:18px}
pre{max-height:27em;overflow-y:auto;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 14px;overflow-x:auto;font-size:13px;line-height:1.5;white-space:pre-wrap;overflow-wrap:anywhere}
code{font-size:13px;overflow-wrap:anywhere}
td code{white-space:nowrap}
footer{margin-top:56px;border-top:1px solid var(--line);padding-top:14px;color:var(--muted);font-size:13px}
@media print{pre{max-height:none}.tiles{grid-template-columns:repeat(6,1fr)}.tile{padding:8px}.tile b{font-size:15px}.tile span{font-size:11px}main{max-width:none;padding:0}figure,.tile,.failure,tr{break-inside:avoid}h2{break-after:avoid}body{font-size:12px}}
";
