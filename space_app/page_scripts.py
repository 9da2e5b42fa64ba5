"""What runs in the browser beside gradio: clicks on the page's own controls become events.

Each script belongs to one gr.HTML component: `element` is its element, `trigger` sends an event to app.py. They listen
on that element, for what is in it changes with every answer.
"""

PICK = "element.addEventListener('change', e => trigger('pick', {name: e.target.value}));"
EXAMPLE = """element.addEventListener('click', e => {
  const button = e.target.closest('[data-example]');
  if (!button) return;
  trigger('example', {index: Number(button.dataset.example)});
  if (button.dataset.sound) new Audio(button.dataset.sound).play().catch(() => {});
});"""
# What is unplugged is told as a whole, so that fast clicks do not depend on each other's answers.
PLUG = """element.addEventListener('click', e => {
  const plug = e.target.closest('[data-device]'), all = e.target.closest('[data-all]');
  if (!plug && !all) return;
  const plugs = [...element.querySelectorAll('[data-device]')];
  if (plug) plug.dataset.unplugged = plug.dataset.unplugged === '1' ? '0' : '1';
  if (all) { plugs.forEach(p => { p.dataset.unplugged = '0'; }); plugs[0].focus(); }
  const out = plugs.filter(p => p.dataset.unplugged === '1').map(p => Number(p.dataset.device));
  trigger('plug', {unplugged: out});
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
