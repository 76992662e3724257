/** Elements without markup: whatever comes from a server or a model becomes text, never HTML. */

export const byId = (id) => document.getElementById(id);

/** Children are elements, or strings that become text. Attributes that are false or null are left out. */
export const make = (name, attributes = {}, ...children) =>
  filled(document.createElement(name), attributes, children);

export const makeSvg = (name, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** A bar that is filled to a share. */
export function bar(share, kind = "") {
  const inner = make("span", { class: `fill ${kind}` });
  inner.style.setProperty("width", `${100 * Math.min(Math.max(share, 0), 1)}%`);
  return make("span", { class: "bar", "aria-hidden": "true" }, inner);
}

export const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

export const rate = (value) => value.toFixed(value < 100 ? 1 : 0);
