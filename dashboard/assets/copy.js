// Buttons that copy this page's address, or a command. The address is read when the button is pressed, so it contains the
// present state of the page.

const SHOWN_MS = 1_600;

async function put(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const field = document.createElement("textarea"); // plain http from another machine has no clipboard API
  field.value = text;
  field.style.position = "fixed";
  field.style.opacity = "0";
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (!done) throw new Error("refused");
}

function button(label, what, text) {
  const node = document.createElement("button");
  node.type = "button";
  node.textContent = label;
  node.title = what;
  let back;
  node.addEventListener("click", async () => {
    clearTimeout(back);
    try {
      await put(text());
      node.textContent = "Copied";
    } catch {
      node.textContent = "The browser refused to copy";
    }
    back = setTimeout(() => (node.textContent = label), SHOWN_MS);
  });
  return node;
}

export function mount({ data, parentElement }) {
  const row = document.createElement("div");
  row.className = "iso-copy";
  const what = data.link ? "Link to this run" : "Link to this page with its present settings";
  const address = () => (data.link ? new URL(data.link, document.baseURI).href : window.location.href);
  row.append(button("Copy link", `${what}, for users of this dashboard`, address));
  if (data.command) row.append(button("Copy command", data.command, () => data.command));
  parentElement.replaceChildren(row);
  return () => row.remove();
}
