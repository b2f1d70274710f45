// A page to try a function. What it shows becomes text nodes and attributes, never markup.

/** Make an element; children that are strings become text. */
function h(tag, props, ...children) {
  const el = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) el.addEventListener(name.slice(2), value);
    else el.setAttribute(name, value === true ? "" : value);
  }
  el.append(...children.flat(Infinity).filter((each) => each || each === 0));
  return el;
}
const $ = (selector, within = document) => within.querySelector(selector);
const own = (object, key) => Object.hasOwn(object, key);
const once = (get) => { let made; return () => (made ??= get()); };
let count = 0;
const fresh = () => `f${++count}`;

// JSON, with numbers as they are written: 1.0 stays 1.0, and integers keep all their digits.

class Num {
  constructor(text) { this.text = text; }
  valueOf() { return Number(this.text); }
  toString() { return this.text; }
}
const WORDS = { true: true, false: false, null: null };
const PYTHON = { true: "True", false: "False", null: "None" };
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value) && !(value instanceof Num);

function parse(text) {
  JSON.parse(text); // says what is wrong, if something is
  const token = /[\s,:]*(?:([{}[\]])|("(?:[^"\\]+|\\.)*")|([^\s,:{}[\]"]+))/y;
  const read = ([, mark, string, word]) => {
    if (string !== undefined) return JSON.parse(string);
    if (word !== undefined) return own(WORDS, word) ? WORDS[word] : new Num(word);
    const found = mark === "[" ? [] : Object.create(null);
    for (let next = token.exec(text); next[1] !== "]" && next[1] !== "}"; next = token.exec(text)) {
      if (mark === "[") found.push(read(next));
      else found[JSON.parse(next[2])] = read(token.exec(text));
    }
    return found;
  };
  return read(token.exec(text));
}

/** Write a value as JSON, or as a Python literal; what is longer than a line is indented. */
function write(value, { width = 76, python = false, pad = "" } = {}) {
  const flat = (it) => {
    if (it === null || typeof it === "boolean") return python ? PYTHON[it] : String(it);
    if (it instanceof Num) return it.text;
    if (typeof it !== "object") return JSON.stringify(it);
    if (Array.isArray(it)) return `[${it.map(flat).join(", ")}]`;
    return `{${Object.keys(it).map((key) => `${JSON.stringify(key)}: ${flat(it[key])}`).join(", ")}}`;
  };
  const tall = (it, before) => {
    const short = flat(it);
    const list = Array.isArray(it);
    if ((!list && !isObject(it)) || short.length + before.length <= width) return short;
    const inner = `${before}${python ? "    " : "  "}`;
    const lines = list
      ? it.map((each) => inner + tall(each, inner))
      : Object.keys(it).map((key) => `${inner}${JSON.stringify(key)}: ${tall(it[key], inner)}`);
    if (!lines.length) return short;
    return `${list ? "[" : "{"}\n${lines.join(",\n")}\n${before}${list ? "]" : "}"}`;
  };
  return tall(value, pad);
}
const flat = (value) => write(value, { width: Infinity });
const sorted = (value) => {
  if (Array.isArray(value)) return value.map(sorted);
  return isObject(value) ? Object.assign(Object.create(null), ...Object.keys(value).sort().map((key) => ({ [key]: sorted(value[key]) }))) : value;
};
const same = (one, other) => flat(sorted(one)) === flat(sorted(other));

/** Color the tokens of JSON. */
function paint(json) {
  const found = json.matchAll(/("(?:[^"\\]+|\\.)*")(\s*:)?|(-?\d[\d.eE+-]*)|(true|false|null)|[^"\d-]+?(?=["\d-]|true|false|null|$)|./gs);
  return [...found].map(([all, string, colon, number, word]) => {
    if (string) return colon ? [h("span", { class: "k" }, string), colon] : h("span", { class: "s" }, string);
    return number ? h("span", { class: "n" }, number) : word ? h("span", { class: "w" }, word) : all;
  }).flat();
}

// JSON Schema

let definitions = {}; // the schema that references point into

function resolve(schema) {
  if (schema === false) return { not: {} };
  if (!isObject(schema)) return {};
  for (let hops = 0; own(schema, "$ref") && hops < 20; hops++) {
    const { $ref, ...rest } = schema;
    const [start, ...keys] = String($ref).split("/");
    const plain = (key) => decodeURIComponent(key).replaceAll("~1", "/").replaceAll("~0", "~");
    const found = start === "#" ? keys.map(plain).reduce((at, key) => at?.[key], definitions) : {};
    schema = { ...found, ...rest };
  }
  if (!Array.isArray(schema.allOf)) return schema;
  const { allOf, ...rest } = schema;
  return [...allOf.map(resolve), rest].reduce((all, part) => ({
    ...all, ...part,
    ...(all.properties || part.properties ? { properties: { ...all.properties, ...part.properties } } : {}),
    ...(all.required || part.required ? { required: [...(all.required ?? []), ...(part.required ?? [])] } : {}),
  }), {});
}

function branches(schema) {
  const { anyOf, oneOf, title, description, default: ignored, discriminator, type, ...rest } = schema;
  const options = anyOf ?? oneOf ?? (Array.isArray(type) ? type.map((each) => ({ type: each })) : null);
  return options?.map((each) => resolve({ ...rest, ...resolve(each) }));
}

/** An optional field that is null where it is left out needs no null to choose. */
function withoutNull(schema) {
  const options = schema.default === null && branches(schema);
  if (!options) return schema;
  const { anyOf, oneOf, type, default: ignored, ...rest } = schema;
  const others = options.filter((each) => kindOf(each) !== "null");
  return others.length === 1 ? { ...others[0], ...(rest.description ? { description: rest.description } : {}) } : { ...rest, anyOf: others };
}

const TYPES = ["object", "array", "string", "integer", "number", "boolean", "null"];

function kindOf(schema) {
  if (own(schema, "const")) return "const";
  if (Array.isArray(schema.enum) && schema.enum.length) return "enum";
  if (branches(schema)) return "union";
  if (TYPES.includes(schema.type)) return schema.type;
  if (own(schema, "type") || own(schema, "not")) return "any";
  if (schema.properties || isObject(schema.additionalProperties)) return "object";
  return schema.items || schema.prefixItems ? "array" : "any";
}

/** Whether a value may be one of a schema: what is needed to choose a part of a union. */
function fits(given, value, depth = 0) {
  const schema = resolve(given);
  const kind = kindOf(schema);
  if (kind === "const") return same(schema.const, value);
  if (kind === "enum") return schema.enum.some((each) => same(each, value));
  if (kind === "union") return branches(schema).some((each) => fits(each, value, depth + 1));
  if (kind === "null") return value === null;
  if (kind === "boolean" || kind === "string") return typeof value === kind;
  if (kind === "integer") return value instanceof Num && Number.isInteger(Number(value));
  if (kind === "number") return value instanceof Num;
  if (kind === "array") {
    const fixed = schema.prefixItems ?? [];
    return Array.isArray(value) && (depth > 5 || value.slice(0, 20).every((each, n) => fits(fixed[n] ?? schema.items, each, depth + 1)));
  }
  if (kind !== "object") return true;
  if (!isObject(value) || (schema.required ?? []).some((name) => !own(value, name))) return false;
  const named = schema.properties ?? {};
  return depth > 5 || Object.keys(value).every((name) => (own(named, name)
    ? fits(named[name], value[name], depth + 1)
    : schema.additionalProperties !== false && fits(schema.additionalProperties, value[name], depth + 1)));
}

/** The schema of values that are like one, where the function has no type for them. */
function inferred(value) {
  if (typeof value === "string" || typeof value === "boolean") return { type: typeof value };
  if (value instanceof Num) return { type: "number" };
  if (Array.isArray(value)) return { type: "array" };
  return isObject(value) ? { type: "object" } : {};
}

function typeName(given, depth = 0) {
  const schema = resolve(given);
  const kind = kindOf(schema);
  if (kind === "const") return flat(schema.const);
  if (kind === "enum") return "choice";
  if (kind === "union") return [...new Set(branches(schema).map((each) => typeName(each, depth + 1)))].join(" or ");
  if (kind === "array") return schema.prefixItems ? `list of ${schema.prefixItems.length}` : depth > 2 || !schema.items ? "list" : `list of ${typeName(schema.items, depth + 1)}`;
  if (kind === "object") return schema.properties ? schema.title ?? "object" : isObject(schema.additionalProperties) && depth < 3 ? `map to ${typeName(schema.additionalProperties, depth + 1)}` : "object";
  if (kind === "string") return schema.format ?? schema.contentEncoding ?? "text";
  return kind === "any" ? "JSON" : kind;
}

function branchName(schema) {
  const kind = kindOf(schema);
  if (kind === "object") {
    const tag = Object.values(schema.properties ?? {}).map(resolve).find((each) => own(each, "const"));
    return schema.title ?? (tag ? flat(tag.const) : typeName(schema));
  }
  return kind === "enum" ? schema.title ?? `one of ${schema.enum.slice(0, 3).map(flat).join(", ")}` : typeName(schema);
}

function limits(schema) {
  const { minimum: low, maximum: high, exclusiveMinimum: above, exclusiveMaximum: below } = schema;
  const size = (least, greatest, of) => [own(schema, least) && `at least ${schema[least]} ${of}`, own(schema, greatest) && `at most ${schema[greatest]} ${of}`];
  return [
    above !== undefined && `more than ${above}`,
    ...(low !== undefined && high !== undefined ? [`${low} to ${high}`] : [low !== undefined && `at least ${low}`, high !== undefined && `at most ${high}`]),
    below !== undefined && `less than ${below}`,
    own(schema, "multipleOf") && Number(schema.multipleOf) !== 1 && `a multiple of ${schema.multipleOf}`,
    ...size("minLength", "maxLength", "characters"), ...(schema.prefixItems ? [] : size("minItems", "maxItems", "items")),
    own(schema, "pattern") && `like ${schema.pattern}`,
  ].filter(Boolean);
}

// Controls. Each has an element, a target for the focus, and get(fail) -> its value; undefined is
// left out. A group has controls inside, and child(key) finds one.

const MAX_DEPTH = 8;
const MAX_ITEMS = 40;
const SUITS = {
  const: fits, enum: fits, union: fits,
  null: (_, value) => value === null,
  boolean: (_, value) => typeof value === "boolean",
  string: (_, value) => typeof value === "string",
  integer: (_, value) => value instanceof Num,
  number: (_, value) => value instanceof Num,
  array: (_, value) => Array.isArray(value) && value.length <= MAX_ITEMS,
  object: (_, value) => isObject(value),
  any: () => true,
};
const GROUPS = ["object", "array", "union"];

/** Choose the kind of control: JSON for what has no other, is nested too deeply or does not suit. */
function choose(given, value, depth) {
  let schema = resolve(given);
  // Who includes an optional field wants another value than null.
  if (value === undefined && own(schema, "default") && schema.default !== null) value = schema.default;
  if (value !== undefined && kindOf(schema) === "any") schema = { ...inferred(value), ...schema };
  const kind = kindOf(schema);
  const suits = depth <= MAX_DEPTH && (value === undefined || SUITS[kind](schema, value));
  return { schema, value, depth, kind: suits ? kind : "any" };
}

const control = (given, value, depth, label) => {
  const chosen = choose(given, value, depth);
  return CONTROLS[chosen.kind](chosen.schema, chosen.value, label, chosen.depth);
};
const simple = (el, get) => ({ el, target: el, get });

function jsonArea(text, label) {
  const el = h("textarea", { class: "json", rows: Math.min(16, text.split("\n").length), spellcheck: "false", "aria-labelledby": label });
  el.value = text;
  return el;
}

function readJson(el, fail) {
  if (!el.value.trim()) return undefined;
  try {
    return parse(el.value);
  } catch (error) {
    return fail(`not JSON: ${error.message}`);
  }
}

function numberControl(schema, value, label) {
  const el = h("input", {
    type: "number", inputmode: schema.type === "integer" ? "numeric" : "decimal", "aria-labelledby": label,
    min: schema.minimum ?? schema.exclusiveMinimum, max: schema.maximum ?? schema.exclusiveMaximum,
    step: schema.multipleOf ?? (schema.type === "integer" ? 1 : "any"),
  });
  if (value !== undefined) el.value = value.text;
  return simple(el, (fail) => {
    const text = el.value;
    if (el.validity.badInput) return fail("not a number");
    return text === "" ? undefined : new Num(/^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/.test(text) ? text : String(Number(text)));
  });
}

const INPUTS = { date: "date", email: "email", uri: "url", password: "password" };
const SAMPLES = { "date-time": "2026-01-31T12:00:00Z", time: "12:00:00", duration: "PT1H", uuid: "00000000-0000-0000-0000-000000000000" };

function stringControl(schema, value = "", label) {
  const { format } = schema;
  const line = format || schema.pattern || schema.contentEncoding || schema.maxLength <= 80;
  const safe = format !== "date" || /^(\d{4}-\d\d-\d\d)?$/.test(value);
  const el = line && !value.includes("\n")
    ? h("input", { type: (safe && INPUTS[format]) || "text", placeholder: SAMPLES[format], autocomplete: "off", "aria-labelledby": label })
    : h("textarea", { rows: Math.min(12, value.split("\n").length), "aria-labelledby": label });
  el.value = value;
  return simple(el, () => el.value);
}

function choiceControl(options, value, label) {
  const el = h("select", { "aria-labelledby": label }, options.map((each) => h("option", {}, typeof each === "string" && each ? each : flat(each))));
  if (value !== undefined) el.selectedIndex = Math.max(0, options.findIndex((each) => same(each, value)));
  return simple(el, () => options[el.selectedIndex]);
}

function constantControl(value) {
  return simple(h("code", { class: "constant", tabindex: -1 }, flat(value)), () => value);
}

function unionControl(schema, value, label, depth) {
  const options = branches(schema);
  const found = value === undefined ? 0 : options.findIndex((each) => fits(each, value));
  const made = options.map((each, n) => once(() => control(each, n === found ? value : undefined, depth + 1, label)));
  const holder = h("div", {});
  const use = () => {
    holder.hidden = kindOf(options[select.selectedIndex]) === "null";
    holder.replaceChildren(made[select.selectedIndex]().el);
  };
  const select = h("select", { "aria-label": "kind of value", onchange: use }, options.map((each) => h("option", {}, branchName(each))));
  select.selectedIndex = found;
  use();
  const current = () => made[select.selectedIndex]();
  return { el: h("div", { class: "sub" }, select, holder), target: select, get: (fail) => current().get(fail), child: (key) => current().child?.(key) };
}

/** Add and remove rows; focus stays where one works. */
function rowsOf(el, what, make, changed = () => {}) {
  const rows = [];
  const add = h("button", { type: "button", onclick: () => { append(undefined).focus(); touched(el); } }, `Add ${what}`);
  function append(...given) {
    const cross = h("button", { type: "button", class: "cross", onclick: () => {
      const at = rows.indexOf(row);
      rows.splice(at, 1);
      row.el.remove();
      changed(rows, add);
      (rows[at] ?? rows[at - 1] ?? { focus: () => add.focus() }).focus();
      touched(el);
    } }, "✕");
    const row = make(rows.length, cross, ...given);
    cross.setAttribute("aria-label", `Remove ${row.title()}`);
    rows.push(row);
    add.before(row.el);
    changed(rows, add);
    return row;
  }
  el.append(add);
  return { rows, append, add };
}

function arrayControl(schema, value = [], label, depth) {
  const fixed = schema.prefixItems ?? [];
  const el = h("div", { class: "sub" });
  const { rows, append, add } = rowsOf(el, "item", (n, cross, item) => (
    field(`[${n}]`, fixed[n] ?? schema.items ?? (rows.length ? inferred(rows[0].get(() => undefined)) : {}), item, depth + 1, { compact: true, cross: n >= fixed.length && cross })
  ), () => {
    rows.forEach((row, n) => row.rename(`[${n}]`));
    add.disabled = rows.length >= (schema.maxItems ?? Infinity);
    add.hidden = fixed.length > 0 && (schema.items === false || add.disabled);
  });
  const size = Math.max(value.length, fixed.length, Math.min(schema.minItems ?? 0, MAX_ITEMS));
  for (let n = 0; n < size; n++) append(value[n]);
  return {
    el, target: add,
    get: (fail) => rows.map((row) => row.get(fail) ?? null),
    child: (key) => rows[key],
  };
}

function objectControl(schema, value, label, depth) {
  const named = schema.properties ?? {};
  const given = value ?? {};
  const required = new Set(schema.required);
  // function.json has its keys sorted: what must be filled in comes first.
  const names = Object.keys(named).sort((one, other) => required.has(other) - required.has(one));
  const fields = new Map(names.map((name) => [name, field(name, named[name], own(given, name) ? given[name] : undefined, depth + 1, {
    optional: !required.has(name), present: own(given, name),
  })]));
  const grid = h("div", { class: "fields" }, [...fields.values()].map((each) => each.el));
  const el = h("div", { class: depth ? "sub" : "" }, fields.size > 0 && grid);
  const more = schema.additionalProperties ?? (fields.size ? false : {});
  const others = Object.keys(given).filter((name) => !own(named, name));
  let entries = { rows: [] };
  if (more !== false || others.length) {
    const box = h("div", { class: fields.size ? "sub" : "rows" });
    entries = rowsOf(box, "entry", (n, cross, key = "", item = undefined) => {
      const like = item === undefined && kindOf(resolve(more)) === "any" && entries.rows?.[0];
      const like_schema = like ? inferred(like.get(() => undefined)) : resolve(more);
      return field(key, like_schema, item, depth + 1, { compact: true, cross, entry: true });
    });
    others.forEach((name) => entries.append(name, given[name]));
    el.append(fields.size ? h("fieldset", { class: "field more" }, h("legend", { class: "about" }, h("span", { class: "kind" }, "other members")), box) : box);
  }
  return {
    el, target: fields.size ? [...fields.values()][0].target : entries.add ?? el,
    get: (fail) => {
      const found = Object.create(null);
      for (const [name, each] of [...fields, ...entries.rows.map((row) => [row.key(), row])]) {
        const got = each.get(fail);
        if (got !== undefined) found[name] = got;
      }
      return found;
    },
    child: (key) => fields.get(key) ?? entries.rows.find((row) => row.key() === key),
  };
}

const CONTROLS = {
  const: (schema) => constantControl(schema.const),
  null: () => constantControl(null),
  enum: (schema, value, label) => choiceControl(schema.enum, value, label),
  boolean: (_, value, label) => choiceControl([false, true], value, label),
  integer: numberControl, number: numberControl, string: stringControl,
  union: unionControl, array: arrayControl, object: objectControl,
  any: (_, value, label) => {
    const el = jsonArea(value === undefined ? "" : write(value), label);
    el.placeholder = "JSON";
    return simple(el, (fail) => readJson(el, fail));
  },
};

/** A control with its label, description and place for an error; an optional one can be left out. */
function field(name, given, value, depth, { optional = false, present = false, compact = false, cross = false, entry = false, bare = false } = {}) {
  const id = fresh();
  if (optional && value !== null) given = withoutNull(resolve(given));
  const { schema, kind } = choose(given, value, depth);
  const group = GROUPS.includes(kind);
  const said = h("span", { class: entry ? "unseen" : "name", id: `${id}n` }, name);
  const label = entry ? h("input", { class: "key", "aria-label": "name of the member", placeholder: "name", oninput: () => { said.textContent = label.value; } }) : said;
  if (entry) label.value = name;
  const made = once(() => control(given, value, depth, `${id}n`));
  const fault = h("p", { class: "fault", id: `${id}e`, hidden: true });
  const hints = [...limits(schema), schema.description].filter(Boolean);
  const hint = hints.length > 0 && h("p", { class: "hint", id: `${id}d` }, hints.join(" · "));
  const held = h("div", { class: "held" });
  const box = optional && h("input", { type: "checkbox", id: `${id}o`, onchange: () => { show(); touched(box); } });
  const isOn = () => !box || box.checked;
  function show() {
    held.hidden = !isOn();
    if (!isOn() || held.firstChild) return;
    held.append(made().el);
    const { target } = made();
    target.id ||= id;
    if (!group) {
      if (hint) target.setAttribute("aria-describedby", hint.id);
      if (!box && !entry && about.tagName === "LABEL") about.htmlFor = target.id;
    }
  }
  const about = box ? h("label", {}, box, label) : h(group || entry || kind === "const" || kind === "null" ? "span" : "label", {}, label);
  const usual = own(schema, "default") && schema.default !== null ? `default ${flat(schema.default)}` : "optional";
  const kindNote = h("span", { class: "kind" }, [typeName(schema), optional && usual].filter(Boolean).join(" · "));
  const inRow = compact && !group;
  let el;
  if (bare) el = h("div", {}, held, fault);
  else if (entry) el = h(group ? "fieldset" : "div", { class: `entry ${group ? "tall" : ""}`, "aria-labelledby": group && `${id}n` }, said, label, group ? cross : h("div", { class: "held" }, held, fault), group ? [held, fault] : cross);
  else if (inRow) el = h("div", { class: "item" }, label, h("div", {}, held, hint, fault), cross);
  else {
    const head = h("div", { class: "about" }, about, kindNote, cross);
    el = group
      ? h("fieldset", { class: "field" }, h("legend", {}, head, hint), held, fault)
      : h("div", { class: `field ${kind === "any" ? "wide" : ""}` }, head, held, hint, fault);
  }
  if (box) box.checked = present;
  show();
  const self = {
    el,
    get target() { return isOn() ? made().target : box; },
    get: (fail) => (isOn() ? made().get((message) => { fail(self, message); }) : undefined),
    child: (key) => (isOn() ? made().child?.(key) : undefined),
    key: () => label.value,
    title: () => (entry ? label.value || "the entry" : label.textContent),
    focus: () => ($("input, select, textarea, button", entry ? el : held) ?? el).focus(),
    rename: (text) => {
      label.textContent = text;
      if (cross) cross.setAttribute("aria-label", `Remove ${text}`);
    },
    fault: (message) => {
      fault.hidden = !message;
      fault.textContent = message ?? "";
      const { target } = self;
      if (group || bare) return;
      const described = [hint && hint.id, message && fault.id].filter(Boolean).join(" ");
      for (const [attribute, text] of [["aria-invalid", message && "true"], ["aria-describedby", described]]) {
        if (text) target.setAttribute(attribute, text);
        else target.removeAttribute(attribute);
      }
    },
  };
  return self;
}

function touched(el) { el.dispatchEvent(new Event("input", { bubbles: true })); }

// Where the page is: links are relative to it, behind any prefix.

const DATA = parse($("#data").textContent);
const BASE = new URL(location.pathname.replace(/\/?$/, "/"), location.origin);
const at = (path) => (path === "" ? BASE.href.replace(/\/$/, "") : new URL(path, BASE).href);
const it = DATA.function;
const { paths } = DATA;

function bytes(size) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let n = Number(size), unit = 0;
  while (n >= 1000 && unit < 4) { n /= 1000; unit++; }
  return `${unit ? n.toPrecision(3) : n} ${units[unit]}`;
}
const seconds = (ms) => (ms >= 1000 ? `${(ms / 1000).toPrecision(3)} s` : `${ms >= 10 ? Math.round(ms) : Number(ms.toPrecision(2))} ms`);
const plural = (n, what) => `${n} ${what}${Number(n) === 1 ? "" : "s"}`;

/** Radio buttons that look like one control. */
function choice(legend, options, value, change) {
  const group = fresh();
  const el = h("fieldset", { class: "choice" }, h("legend", { class: "unseen" }, legend), options.map(([key, text]) => h("label", {},
    h("input", { type: "radio", name: group, value: key, checked: key === value, onchange: () => { if (change(key) === false) el.set(value); else value = key; } }), text)));
  el.set = (key) => { value = key; $(`input[value="${key}"]`, el).checked = true; };
  return el;
}

function copyButton(what, text) {
  const button = h("button", { type: "button", "aria-label": `Copy ${what}`, onclick: async () => {
    try {
      await navigator.clipboard.writeText(text());
    } catch { // no permission: not a secure context, or in another page's frame
      const area = h("textarea", { class: "unseen", readonly: true });
      area.value = text();
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  } }, "Copy");
  return button;
}

// To try it: the form, the call, the answer

function tryIt() {
  definitions = it.input;
  let many = false;
  // A form of an object of which nothing is known has no fields.
  const whole = resolve(it.input);
  const unknown = !it.examples.length && kindOf(whole) === "object" && !whole.properties && !isObject(whole.additionalProperties);
  let json = unknown;
  let current; // the field of the whole form
  let area;
  let calling = null;
  let invalid = [];
  const form = h("form", { novalidate: true, onsubmit: (event) => { event.preventDefault(); run(); } });
  const body = h("div", {});
  const names = h("div", { class: "unseen", id: "record" }, "record");
  const schema = () => (many ? { type: "array", items: it.input, title: "list" } : it.input);
  const address = () => at(many ? paths.batch : paths.call);

  function build(value) {
    invalid = [];
    if (json) {
      area = jsonArea(value === undefined ? "" : write(value), "record");
      area.id = "json";
      area.rows = Math.max(8, area.rows);
      const fault = h("p", { class: "fault", id: "jsone", hidden: true });
      area.setAttribute("aria-describedby", "jsone");
      body.replaceChildren(area, fault);
      current = {
        target: area, get: (fail) => readJson(area, (message) => { fail(current, message); }), child: () => undefined,
        fault: (message) => {
          fault.hidden = !message;
          fault.textContent = message ?? "";
          area.setAttribute("aria-invalid", String(Boolean(message)));
        },
      };
    } else {
      const group = GROUPS.includes(choose(schema(), value, 0).kind);
      current = field("record", schema(), value, 0, { bare: group });
      body.replaceChildren(current.el);
    }
    update();
  }

  function read() {
    const problems = [];
    const value = current.get((place, message) => { problems.push({ place, message }); });
    return { value: value === undefined ? null : value, problems };
  }

  // Examples
  const options = () => [
    ...(many && it.examples.length > 1 ? [["all", `All ${it.examples.length} examples`]] : []),
    ...it.examples.map((each, n) => [String(n), `Example ${n + 1}: ${flat(each.input).slice(0, 60)}`]),
    ["", "Empty"],
  ];
  const picker = h("select", { "aria-label": "Recorded examples", onchange: () => build(example()) });
  function example() {
    const chosen = picker.value;
    if (chosen === "") return undefined;
    const inputs = it.examples.map((each) => each.input);
    return chosen === "all" ? inputs : many ? [inputs[chosen]] : inputs[chosen];
  }
  function expected(value) {
    const found = it.examples.find((each) => same(each.input, value));
    return many ? undefined : found;
  }
  function list() { picker.replaceChildren(...options().map(([key, text]) => h("option", { value: key }, text))); }

  const manyChoice = choice("Records", [["one", "One record"], ["list", "List"]], "one", (key) => {
    const { value, problems } = read();
    if (problems.length) { refuse(problems); return false; }
    many = key === "list";
    const was = picker.value;
    list();
    picker.value = was === "all" ? "0" : was;
    build(many ? [value] : Array.isArray(value) && value.length ? value[0] : undefined);
    return true;
  });
  const view = choice("Input as", [["form", "Form"], ["json", "JSON"]], json ? "json" : "form", (key) => {
    const { value, problems } = read();
    if (problems.length) { refuse(problems); return false; }
    json = key === "json";
    build(value);
    return true;
  });

  // The call as code
  let language = "curl";
  const code = h("pre", { tabindex: 0, role: "region", "aria-label": "The call as code" });
  function source() {
    const { value } = read();
    if (language === "curl") {
      const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
      const url = address();
      return `curl ${/^[\w.:/@%+=,~-]+$/.test(url) ? url : quote(url)} \\\n  -H 'Content-Type: application/json' \\\n  -d ${quote(write(value, { width: 60 }))}`;
    }
    return `import json\nimport urllib.request\n\nrequest = urllib.request.Request(\n    ${JSON.stringify(address())},\n`
      + `    data=json.dumps(${write(value, { python: true, width: 60, pad: "    " })}).encode(),\n`
      + '    headers={"Content-Type": "application/json"},\n)\nwith urllib.request.urlopen(request) as response:\n    print(json.load(response))';
  }
  let waiting = 0;
  function update() {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => { code.textContent = source(); });
  }
  body.addEventListener("input", update);
  body.addEventListener("change", update);

  // The answer
  const said = h("p", { class: "row", role: "status" });
  const answer = h("div", { class: "answer" });
  const tools = h("div", { class: "row" });

  function clear() {
    invalid.forEach((each) => each.fault());
    invalid = [];
  }
  function locate(path) {
    const part = /\.([^.[\]\s]+)|\[(\d+)\]|\[("(?:[^"\\]|\\.)*")\]/y;
    const rest = path.replace(/^[^.[]*/, "");
    let place = current;
    for (let found = part.exec(rest); found; found = part.exec(rest)) {
      const next = place.child(found[1] ?? (found[2] !== undefined ? Number(found[2]) : JSON.parse(found[3])));
      if (!next) break;
      place = next;
    }
    return place;
  }
  /** Show errors at their fields and in a summary that links to them, and go there. */
  function refuse(problems, title = "The record is not complete", detail = "", id = "") {
    clear();
    const messages = new Map();
    for (const { place, message } of problems) if (place) messages.set(place, [...(messages.get(place) ?? []), message]);
    messages.forEach((texts, place) => place.fault(texts.join("; ")));
    invalid = [...messages.keys()];
    const lines = problems.map(({ place, path, message }) => {
      const text = path ?? (place.title ? place.title() : "record");
      if (!place) return h("li", {}, h("code", {}, text), `: ${message}`);
      place.target.id ||= fresh();
      return h("li", {}, h("a", { href: `#${place.target.id}`, onclick: (event) => {
        event.preventDefault();
        const { target } = path ? locate(path) : place; // the form may be another one now
        target.focus();
        target.scrollIntoView({ block: "center" });
      } }, h("code", {}, text)), `: ${message}`);
    });
    const shown = h("div", { class: "summary", tabindex: -1, role: "group", "aria-label": "What is wrong" },
      h("h3", {}, title), detail && h("p", {}, detail), lines.length > 0 && h("ul", {}, lines), id && h("p", { class: "soft" }, "request ", h("code", {}, id)));
    answer.replaceChildren(shown);
    shown.focus({ preventScroll: true });
    shown.scrollIntoView({ block: "nearest" });
  }
  function print(text) {
    const long = text.length > 200_000;
    const pre = h("pre", { tabindex: 0, role: "region", "aria-label": "Result" });
    try {
      if (long) throw new RangeError();
      pre.append(...paint(write(parse(text), { width: 56 })));
    } catch { // long, or not JSON
      pre.append(text.slice(0, 200_000));
    }
    answer.replaceChildren(pre);
    if (long) answer.append(h("p", { class: "hint" }, `The first 200 kB of ${bytes(text.length)}.`));
    tools.replaceChildren(copyButton("the answer", () => text));
  }
  function status(good, text, ...more) {
    said.replaceChildren(h("span", { class: `pill ${good ? "good" : "bad"}` }, `${good ? "✓" : "✕"} ${text}`), ...more.filter(Boolean).map((each) => h("span", { class: "soft" }, each)));
  }
  function show(response, text, ms, value) {
    const size = `${seconds(ms)} · ${bytes(text.length)}`;
    const isJson = /json/.test(response.headers.get("content-type") ?? "");
    let problem = null;
    let found = null;
    if (isJson) try { found = parse(text); } catch { /* shown as it is */ }
    if (!response.ok && isObject(found) && found.detail !== undefined) problem = found;
    const title = `${response.status} ${problem?.title ?? response.statusText}`.trim();
    status(response.ok, title, size);
    if (problem) {
      const faults = (problem.errors ?? []).map((each) => ({ path: String(each.path), message: String(each.message), place: /^\w+([.[]|$)/.test(each.path) && response.status === 422 ? locate(String(each.path)) : null }));
      const detail = faults.length ? "" : String(problem.detail);
      refuse(faults, response.status === 422 ? "The record does not fit" : title, detail, problem.request_id);
      return;
    }
    print(text);
    if (many && response.ok && Array.isArray(found)) {
      const failed = found.map((each, n) => [n, each?.error]).filter(([, error]) => error);
      if (failed.length) {
        const faults = failed.flatMap(([n, error]) => (error.errors ?? [{ path: "", message: error.detail }]).map((each) => {
          const path = `records[${n}]${String(each.path).replace(/^[^.[]*/, "")}`;
          return { path, message: String(each.message), place: locate(path) };
        }));
        const pre = answer.firstChild;
        refuse(faults, `${failed.length} of ${plural(found.length, "record")} failed`);
        answer.append(pre);
      }
    }
    const recorded = expected(value);
    if (recorded && found !== null && response.ok) {
      if (same(recorded.output, found)) said.append(h("span", { class: "soft" }, "same as recorded"));
      else answer.append(h("details", {}, h("summary", {}, "The recorded result differs"), h("pre", {}, paint(write(recorded.output)))));
    }
  }

  async function run() {
    if (button.disabled) return;
    if (calling) { calling.abort(); return; }
    const { value, problems } = read();
    said.replaceChildren();
    tools.replaceChildren();
    if (problems.length) { refuse(problems); return; }
    clear();
    const mine = calling = new AbortController();
    button.textContent = "Cancel";
    button.classList.add("busy");
    const started = performance.now();
    try {
      const response = await fetch(address(), { method: "POST", headers: { "content-type": "application/json", accept: "application/json" }, body: flat(value), signal: mine.signal });
      const text = await response.text();
      show(response, text, performance.now() - started, value);
    } catch (error) {
      if (mine.signal.aborted) { status(false, "Cancelled", seconds(performance.now() - started)); answer.replaceChildren(); }
      else { status(false, "No response"); refuse([], "No response", "The server cannot be reached. Is it still running?"); }
    } finally {
      calling = null;
      button.textContent = "Run";
      button.classList.remove("busy");
    }
  }
  const button = h("button", { class: "main", type: "submit" }, "Run");
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
  });

  list();
  form.append(...[
    h("div", { class: "bar" }, h("h2", {}, "Try it"), h("div", { class: "row" }, paths.batch !== null && manyChoice, view)),
    it.examples.length > 0 && h("p", {}, picker),
    it.omitted > 0 && h("p", { class: "hint" }, `${plural(it.omitted, "more example")} ${it.omitted == 1 ? "is" : "are"} too large for this page; openapi.json has all.`),
    names, body,
    h("div", { class: "row run" }, button, h("span", { class: "soft" }, h("kbd", {}, "Ctrl"), " ", h("kbd", {}, "Enter"))),
  ].filter(Boolean));
  build(unknown ? {} : example());
  return {
    allow: (ready) => { button.disabled = !ready; },
    left: h("section", { class: "card" }, form),
    right: [
      h("section", { class: "card", "aria-labelledby": "answer" }, h("div", { class: "bar" }, h("h2", { id: "answer" }, "Answer"), tools), said, answer),
      h("section", { class: "card" }, h("div", { class: "bar" }, h("h2", {}, "As code"), h("div", { class: "row" },
        choice("Language", [["curl", "curl"], ["python", "Python"]], "curl", (key) => { language = key; code.textContent = source(); return true; }),
        copyButton("the code", source))), code),
    ],
  };
}

// Traffic, from /metrics

const BEATS = 60;

function plot(title, lines) {
  const figures = h("p", {});
  const draw = (tag, props) => {
    const el = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(props)) el.setAttribute(name, value);
    return el;
  };
  const svg = draw("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img", "aria-label": title });
  const drawn = lines.map((_, n) => draw("path", { class: n ? "second" : "" }));
  svg.append(...drawn.reverse());
  drawn.reverse();
  return {
    el: h("div", { class: "plot" }, h("h3", {}, title), figures, svg),
    show: (series, texts, label, unit) => {
      const peak = Math.max(...series.flat().filter((y) => y !== null), 0);
      const top = peak || 1;
      series.forEach((ys, n) => {
        let pen = "M";
        drawn[n].setAttribute("d", ys.map((y, at) => {
          if (y === null) { pen = "M"; return ""; }
          const here = `${((at + BEATS - ys.length) * 100 / (BEATS - 1)).toFixed(2)} ${(97 - 92 * y / top).toFixed(2)}`;
          const part = pen === "M" ? `M${here}l.01 0` : `L${here}`;
          pen = "L";
          return part;
        }).join(""));
      });
      figures.replaceChildren(...texts, peak ? h("span", { class: "peak" }, `peak ${unit(peak)}`) : "");
      svg.setAttribute("aria-label", `${title}: ${label}`);
    },
  };
}

function traffic() {
  const rate = plot("Requests per second", ["rate"]);
  const latency = plot("Latency", ["p50", "p99"]);
  const section = h("section", { class: "card", hidden: true }, h("div", { class: "bar" }, h("h2", {}, "Traffic"), h("span", { class: "soft" }, "live")), h("div", { class: "plots" }, rate.el, latency.el));
  const beats = [];
  const pause = DATA.count > 50 ? 10_000 : 2000;
  let before = null;

  function counted(text) {
    const found = { total: 0, buckets: new Map(), at: performance.now() };
    for (const line of text.split("\n")) {
      if (!line.startsWith("mfimage_request")) continue;
      const labels = Object.fromEntries([...line.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, name, value]) => [name, value]));
      if (labels.endpoint === "other" || (labels.function ?? it.name) !== it.name) continue;
      const value = Number(line.slice(line.lastIndexOf(" ") + 1));
      if (line.startsWith("mfimage_requests_total{")) found.total += value;
      else if (line.startsWith("mfimage_request_seconds_bucket{")) {
        const limit = labels.le === "+Inf" ? Infinity : Number(labels.le);
        found.buckets.set(limit, (found.buckets.get(limit) ?? 0) + value);
      }
    }
    return found;
  }
  /** As Prometheus' histogram_quantile, in ms. */
  function quantile(q, now) {
    const limits = [...now.buckets.keys()].sort((a, b) => a - b);
    const counts = limits.map((limit) => now.buckets.get(limit) - (before.buckets.get(limit) ?? 0));
    const all = counts.at(-1);
    if (!(all > 0)) return null;
    const n = counts.findIndex((each) => each >= q * all);
    const [low, under] = n ? [limits[n - 1], counts[n - 1]] : [0, 0];
    if (limits[n] === Infinity) return low * 1000;
    return 1000 * (low + (limits[n] - low) * (q * all - under) / (counts[n] - under));
  }
  async function poll() {
    if (document.visibilityState !== "visible") {
      before = null; // what was counted meanwhile has no time
      document.addEventListener("visibilitychange", poll, { once: true });
      return;
    }
    try {
      const response = await fetch(at(paths.metrics), { headers: { accept: "text/plain" } });
      if (response.status === 404) { section.hidden = true; return; }
      const now = counted(await response.text());
      section.hidden = !now.buckets.size && !beats.length;
      if (before && now.total >= before.total) {
        beats.push({ rate: (now.total - before.total) * 1000 / (now.at - before.at), p50: quantile(0.5, now), p99: quantile(0.99, now) });
        if (beats.length > BEATS) beats.shift();
      }
      before = now;
      const last = beats.at(-1) ?? { rate: 0, p50: null, p99: null };
      const seen = beats.findLast((each) => each.p50 !== null) ?? last;
      const figure = (n) => (n >= 10 ? String(Math.round(n)) : n.toFixed(1));
      rate.show([beats.map((each) => each.rate)], [h("b", {}, figure(last.rate))], `${figure(last.rate)} now`, figure);
      const show = (ms) => (ms === null ? "–" : seconds(ms));
      latency.show([beats.map((each) => each.p50), beats.map((each) => each.p99)],
        [h("span", { class: "p50" }, "p50 ", h("b", {}, show(seen.p50))), h("span", { class: "p99" }, "p99 ", h("b", {}, show(seen.p99)))], `p50 ${show(seen.p50)}, p99 ${show(seen.p99)}`, seconds);
    } catch { before = null; }
    setTimeout(poll, pause);
  }
  if (paths.metrics !== null) poll();
  return section;
}

// What it is

function facts() {
  const table = (title, rows, ...more) => {
    const shown = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
    return (shown.length > 0 || more.some(Boolean)) && h("div", {}, h("h3", {}, title), h("dl", {}, shown.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])), more);
  };
  const mono = (text) => text && h("code", {}, text);
  const fold = (title, ...content) => h("details", {}, h("summary", {}, title), content);
  const { image } = DATA;
  const env = it.environment;
  const created = it.created && h("time", { datetime: it.created }, it.created.replace("T", " ").replace(/\.\d+|\+00:00$/g, "").replace("Z", " UTC"));
  const artifacts = it.artifacts ?? [];
  const total = artifacts.reduce((sum, each) => sum + Number(each.size), 0);
  const reason = (name) => env?.reasons?.[name];
  const schema = (title, value) => fold(title, h("pre", { tabindex: 0, role: "region", "aria-label": title }, paint(write(value))));
  return h("section", { class: "card", "aria-labelledby": "facts" }, h("div", { class: "bar" }, h("h2", { id: "facts" }, "About this function")), h("div", { class: "facts" },
    table(it.parts ? "Pipeline" : "Trained by", [
      ["task", mono(it.task)], ["run", it.parts ? null : mono(it.task.split("/")[1])], ["user", it.user], ["commit", mono(it.commit)], ["created", created || null], ["Metaflow", it.metaflow],
      ["parts", it.parts && h("span", {}, it.parts.map((each, n) => [n > 0 && " → ", h("code", { title: each.digest }, each.name)]))],
    ]),
    table("Function", [
      ["name", mono(it.name)], ["entry point", mono(it.entrypoint)], ["kind", `${it.kind}${it.batch ? ", batch: one call takes many records" : ""}`], ["digest", mono(it.digest)],
      ["parameters", it.parameters?.length ? mono(it.parameters.join(", ")) : null],
    ], schema("Input schema", it.input), schema("Output schema", it.output)),
    artifacts.length > 0 && h("div", {}, h("h3", {}, `Artifacts · ${bytes(total)}`), h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "name"), h("th", { scope: "col" }, "type"), h("th", { scope: "col", class: "number" }, "size"))),
      h("tbody", {}, artifacts.map((each) => h("tr", {}, h("td", {}, mono(each.name)), h("td", { class: "soft" }, mono(each.type)), h("td", { class: "number" }, bytes(each.size))))))),
    table("Environment", [
      ["Python", env?.python ?? image.python], ["platform", env?.platform ?? image.platform], ["locked from", env?.source], ["Debian packages", env?.system?.length ? mono(env.system.join(", ")) : null],
    ], fold(plural(image.distributions.length, "installed distribution"), h("div", { class: "many", tabindex: 0, role: "region", "aria-label": "Distributions" }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "distribution"), h("th", { scope: "col" }, "version"), h("th", { scope: "col" }, "why"))),
      h("tbody", {}, image.distributions.map(([name, version]) => h("tr", {}, h("td", {}, mono(name)), h("td", {}, mono(version)), h("td", { class: "soft" }, reason(name) ?? "")))))))),
    table("Served by", [
      ["mfimage", DATA.version], ["target", image.target], ["Python", image.python], ["platform", image.platform],
    ]),
  ));
}

// The head, and whether the server is ready

function top(back) {
  const link = (path, text) => path !== null && h("a", { href: at(path) }, text);
  return h("header", { class: "top" }, back ? h("a", { class: "back", href: at("") + (at("").endsWith("/") ? "" : "/") }, "← All functions") : h("span", { class: "brand" }, "mfimage"),
    h("nav", { "aria-label": "Documentation" }, link(paths.docs, "Docs"), link(paths.openapi, "OpenAPI"), link(paths.metrics, "Metrics")));
}

const STATES = { loaded: ["good", "● Ready"], ready: ["good", "● Ready"], loading: ["warn", "◌ Loading"], unloaded: ["soft", "○ Loads when called"], failed: ["bad", "✕ Failed"] };
function pill(state, el = h("span", {})) {
  const [kind, text] = STATES[state] ?? ["soft", state];
  el.className = `pill ${kind}`;
  el.textContent = text;
  return el;
}

async function states() {
  const response = await fetch(at(paths.functions), { headers: { accept: "application/json" } });
  return new Map((await response.json()).functions.map((each) => [each.name, each]));
}

/** Whether the function can be called, and why not; asked again while it cannot. */
async function readiness(show) {
  let state = "loading";
  try {
    if (paths.functions !== null) {
      const found = (await states()).get(it.name);
      state = found?.state ?? "failed";
      show(state, found?.error);
    } else if (paths.readyz !== null) {
      const response = await fetch(at(paths.readyz));
      const detail = response.ok ? "" : (await response.json()).detail;
      state = response.ok ? "ready" : /cannot be loaded/.test(detail) ? "failed" : "loading";
      show(state, detail);
    } else state = "ready";
  } catch {
    show("loading", "The server cannot be reached.");
  }
  if (state === "loading" || state === "unloaded") setTimeout(readiness, state === "loading" ? 1000 : 5000, show);
}

function functionPage() {
  document.title = `${it.name} · mfimage`;
  const state = h("span", { class: "pill", hidden: true });
  const banner = h("div", { class: "banner", role: "status", hidden: true });
  const { left, right, allow } = tryIt();
  readiness((found, detail) => {
    state.hidden = false;
    pill(found, state);
    const waits = found === "loading" || found === "failed";
    banner.hidden = !waits;
    if (waits) banner.textContent = found === "failed" ? `The function cannot be called: ${detail}` : detail || "The function is still loading. This page goes on by itself.";
    allow(!waits);
  });
  return [top(DATA.count > 1), h("main", {},
    h("div", { class: "title" }, h("h1", {}, it.name), state, it.batch && h("span", { class: "tag" }, "batch"), it.kind !== "json" && h("span", { class: "tag" }, it.kind), it.parts && h("span", { class: "tag" }, "pipeline")),
    it.description && h("p", { class: "lead" }, it.description), banner,
    h("div", { class: "columns" }, h("div", {}, left), h("div", { class: "beside" }, right)), traffic(), facts())];
}

function listPage() {
  document.title = `${DATA.title} · mfimage`;
  const rows = DATA.functions.map((each) => {
    const state = h("span", { class: "pill", hidden: true });
    const el = h("tr", {}, h("td", {}, h("a", { href: `${at("")}${at("").endsWith("/") ? "" : "/"}?function=${encodeURIComponent(each.name)}` }, h("code", {}, each.name)), each.summary && h("p", {}, each.summary)),
      h("td", { class: "task" }, h("code", { class: "soft" }, each.task)), h("td", {}, state));
    return { ...each, el, state, text: `${each.name} ${each.task} ${each.summary}`.toLowerCase() };
  });
  const found = h("p", { class: "unseen", role: "status" });
  const search = h("input", { type: "search", "aria-label": "Search the functions", placeholder: "Search", oninput: () => {
    const words = search.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of rows) {
      row.el.hidden = !words.every((word) => row.text.includes(word));
      shown += row.el.hidden ? 0 : 1;
    }
    found.textContent = plural(shown, "function");
  } });
  async function poll() {
    let waiting = true;
    try {
      const known = await states();
      for (const row of rows) {
        const { state, error } = known.get(row.name) ?? {};
        row.state.hidden = !state;
        if (state) pill(state, row.state);
        row.state.title = error ?? "";
      }
      waiting = [...known.values()].some((each) => each.state === "loading");
    } catch { /* later */ }
    setTimeout(poll, waiting ? 1000 : 10_000);
  }
  if (paths.functions !== null) poll();
  return [top(false), h("main", { class: "list" },
    h("div", { class: "title" }, h("h1", {}, DATA.title)),
    DATA.missing !== null && h("p", { class: "banner", role: "alert" }, "There is no function ", h("code", {}, DATA.missing), "."),
    h("div", { class: "search" }, search, found),
    h("div", { class: "card" }, h("table", {}, h("thead", {}, h("tr", {}, ["function", "task", "state"].map((each) => h("th", { scope: "col" }, each)))), h("tbody", {}, rows.map((each) => each.el)))))];
}

$("#page").append(...(it ? functionPage() : listPage()).filter(Boolean));
