// Text

const INVISIBLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u;
const SIGNS = new Map([[" ", "·"], ["\n", "⏎"], ["\t", "⇥"], ["\r", "␍"]]);

/** A text in pieces that can all be seen: [[piece, whether it stands for something that cannot], ...]. */
function visible(text) {
  if (!text) return [["∅", true]];
  const pieces = [];
  const signs = Array.from(text);
  for (let at = 0; at < signs.length;) {
    const sign = signs[at];
    let same = 1;
    while (signs[at + same] === sign) same += 1;
    const code = sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    const mark = SIGNS.get(sign) ?? (INVISIBLE.test(sign) ? `U+${code}` : null);
    if (mark) {
      pieces.push([same > 3 ? `${mark}×${same}` : mark.repeat(same), true]);
      at += same;
    } else {
      pieces.push([at === 0 && /\p{M}/u.test(sign) ? `◌${sign}` : sign, false]);
      at += 1;
    }
  }
  return pieces.reduce((joined, [piece, isMark]) => {
    const last = joined.at(-1);
    if (last && last[1] === isMark) last[0] += piece;
    else joined.push([piece, isMark]);
    return joined;
  }, []);
}

const visibleText = (text) => visible(text).map(([piece, isMark]) => isMark && piece === "·" ? " " : piece).join("");

const plain = (side, code) => code ? visible(side.words[code]).map(([piece]) => piece).join("") : "nothing";

function make(name, content = "", className = "") {
  const made = document.createElement(name);
  made.textContent = content;
  if (className) made.className = className;
  return made;
}

function word(side, code, name = "span", className = "word") {
  const made = make(name, "", className);
  const pieces = code ? visible(side.words[code]) : [["∅", true]];
  made.append(...pieces.map(([piece, isMark]) => isMark ? make("span", piece, "mark") : piece));
  return made;
}

const counted = (number) => number.toLocaleString("en");

function numeral(value, measure) {
  if (value === null) return "–";
  if (measure === "next_rank") return counted(Math.round(value));
  if (value === 0) return "0";
  if (measure.endsWith("_layer")) return String(value);
  if (measure === "io_cosine") return value.toFixed(3).replace("-", "−");
  return Math.abs(value) >= 100 ? counted(Math.round(value)) : Math.abs(value) < 0.1 ? value.toFixed(3) : value.toFixed(2);
}
