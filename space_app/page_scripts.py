"""What runs in the browser beside gradio: clicks on the page's own controls become events.

Each script belongs to one gr.HTML component: `element` is its element, `trigger` sends an event to app.py. They listen
on that element, for what is in it changes with every answer.
"""

# gradio's own few words follow the browser's language, and with them what the page says its language is: a screen
# reader would read the page's English as if it were that. So the page says English whenever gradio says otherwise.
ENGLISH = """const page = document.documentElement;
const tell = () => { if (page.lang !== 'en') page.lang = 'en'; };
new MutationObserver(tell).observe(page, {attributeFilter: ['lang']});
tell();"""
PICK = "element.addEventListener('change', e => trigger('pick', {name: e.target.value}));"
EXAMPLE = """element.addEventListener('click', e => {
  const button = e.target.closest('[data-example]');
  if (!button) return;
  trigger('example', {index: Number(button.dataset.example)});
  if (button.dataset.sound) new Audio(button.dataset.sound).play().catch(() => {});
});"""
# Each click tells its own device alone: what the page shows of the others may still be the answer to an older click.
PLUG = """element.addEventListener('click', e => {
  const plug = e.target.closest('[data-device]'), all = e.target.closest('[data-all]');
  if (all) { element.querySelector('[data-device]').focus(); trigger('plug', {device: null}); }
  if (!plug) return;
  const out = plug.dataset.unplugged !== '1';
  plug.dataset.unplugged = out ? '1' : '0';
  trigger('plug', {device: Number(plug.dataset.device), out});
});"""
COPY = """element.addEventListener('click', async e => {
  const button = e.target.closest('[data-copy]');
  if (!button) return;
  const text = button.closest('.ed-code').querySelector('code').textContent, said = element.querySelector('.ed-copied');
  try { await navigator.clipboard.writeText(text); }
  catch (refused) {
    const field = document.createElement('textarea');
    field.value = text; document.body.append(field); field.select(); document.execCommand('copy'); field.remove();
  }
  said.textContent = ''; requestAnimationFrame(() => { said.textContent = 'Copied.'; });
  button.textContent = 'Copied'; setTimeout(() => { button.textContent = 'Copy'; }, 1500);
});"""
