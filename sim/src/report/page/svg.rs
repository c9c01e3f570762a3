//! PURE: pieces of SVG, escaped, and the two ways a drawing is given away: within a page, whose style
//! it shares, and as a file of its own with its own style and background.

use super::style;

/// Space around a drawing in a file of its own, and above it for the title.
const MARGIN: f64 = 14.0;
const TITLE: f64 = 34.0;

/// A drawing.
#[derive(Clone, Debug)]
pub struct Drawing {
    /// What it shows, in words; read aloud, and above a drawing in a file of its own.
    pub title: String,
    /// User units, which are pixels at full size.
    pub width: f64,
    /// As `width`.
    pub height: f64,
    /// Elements.
    pub body: String,
}

impl Drawing {
    /// For a page that holds [`style::drawing`] already.
    pub fn inline(&self) -> String {
        let (width, height, title) = (self.width, self.height, escape(&self.title));
        format!(
            "<svg class=\"plot\" role=\"img\" aria-label=\"{title}\" viewBox=\"0 0 {width:.0} {height:.0}\" \
             xmlns=\"http://www.w3.org/2000/svg\">\n{}</svg>\n",
            self.body
        )
    }

    /// A file of its own: right on a light and on a dark page, as it brings its background.
    pub fn standalone(&self) -> String {
        let (width, height) = (self.width + 2.0 * MARGIN, self.height + TITLE + 2.0 * MARGIN);
        let title = escape(&self.title);
        format!(
            "<svg class=\"plot\" role=\"img\" aria-label=\"{title}\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" xmlns=\"http://www.w3.org/2000/svg\">\n\
             <style>{style}</style>\n\
             <rect class=\"paper\" width=\"{width:.0}\" height=\"{height:.0}\" rx=\"6\"/>\n\
             <text class=\"title\" x=\"{MARGIN}\" y=\"{title_at}\">{title}</text>\n\
             <g transform=\"translate({MARGIN} {top})\">\n{body}</g>\n</svg>\n",
            style = style::drawing(),
            title_at = MARGIN + 16.0,
            top = MARGIN + TITLE,
            body = self.body,
        )
    }
}

/// Text as HTML and XML hold it. What XML cannot hold at all is shown as missing.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(character),
            control if control.is_control() || matches!(control, '\u{fffe}' | '\u{ffff}') => {
                escaped.push('\u{fffd}');
            }
            _ => escaped.push(character),
        }
    }
    escaped
}

/// Where a text's given point lies within it.
#[derive(Clone, Copy, Debug)]
pub enum Anchor {
    /// At its begin.
    Start,
    /// In its middle.
    Middle,
    /// At its end.
    End,
}

/// A line of text.
pub fn text(class: &str, anchor: Anchor, (x, y): (f64, f64), words: &str) -> String {
    let anchor = match anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    let words = escape(words);
    format!("<text class=\"{class}\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{y:.1}\">{words}</text>\n")
}

/// A straight line; its tooltip may be empty.
pub fn line(class: &str, from: (f64, f64), to: (f64, f64), tooltip: &str) -> String {
    let shape = format!(
        "line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"",
        from.0, from.1, to.0, to.1
    );
    with_tooltip(&shape, tooltip)
}

/// A disc.
pub fn dot(class: &str, (x, y): (f64, f64), radius: f64, tooltip: &str) -> String {
    with_tooltip(&format!("circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\""), tooltip)
}

/// A rectangle from its upper left corner.
pub fn rectangle(class: &str, (x, y): (f64, f64), (width, height): (f64, f64), tooltip: &str) -> String {
    let shape = format!(
        "rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\""
    );
    with_tooltip(&shape, tooltip)
}

/// A line through `points`, or an area if they come back to where they began.
pub fn path(class: &str, points: impl IntoIterator<Item = (f64, f64)>, tooltip: &str) -> String {
    let mut way = String::new();
    for (at, (x, y)) in points.into_iter().enumerate() {
        way.push_str(&format!("{}{x:.1} {y:.1}", if at == 0 { "M" } else { "L" }));
    }
    with_tooltip(&format!("path class=\"{class}\" d=\"{way}\""), tooltip)
}

fn with_tooltip(shape: &str, tooltip: &str) -> String {
    if tooltip.is_empty() {
        return format!("<{shape}/>\n");
    }
    let name = shape.split(' ').next().unwrap_or_default();
    format!("<{shape}><title>{}</title></{name}>\n", escape(tooltip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_becomes_an_element() {
        let drawn = text("tick", Anchor::End, (1.0, 2.0), "</text><script>'\"&\u{0}");
        assert!(drawn.contains("&lt;/text&gt;&lt;script&gt;&#39;&quot;&amp;\u{fffd}</text>"), "{drawn}");
        let drawing = Drawing { title: "<b>".to_owned(), width: 10.0, height: 10.0, body: String::new() };
        assert!(!drawing.inline().contains("<b>") && !drawing.standalone().contains("<b>"));
    }
}
