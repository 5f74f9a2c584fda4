// The official JavaScript SDK, unmodified, against the local server. See test_python.py.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { CommandExitError, NotFoundError, Sandbox, Template, TimeoutError } from 'e2b'

let sandbox
before(async () => {
  sandbox = await Sandbox.create({ timeoutMs: 120_000, metadata: { suite: 'js' }, envs: { FROM_CREATE: '1' } })
})
after(() => sandbox.kill())

async function until(look, what) {
  const deadline = Date.now() + 20_000
  while (Date.now() < deadline) {
    const found = await look()
    if (found) return found
    await sleep(20)
  }
  throw new Error(`waited in vain: ${what}`)
}

test('a sandbox is created, found, listed and killed', async () => {
  const one = await Sandbox.create({ timeoutMs: 60_000, metadata: { who: 'a b&c' } })
  assert.equal(await one.isRunning(), true)
  const info = await one.getInfo()
  assert.deepEqual([info.sandboxId, info.state, info.metadata.who], [one.sandboxId, 'running', 'a b&c'])
  const found = await Sandbox.list({ query: { metadata: { who: 'a b&c' } } }).nextItems()
  assert.deepEqual(found.map((row) => row.sandboxId), [one.sandboxId])
  assert.equal(await one.kill(), true)
  assert.equal(await Sandbox.kill(one.sandboxId), false)
  assert.equal(await one.isRunning(), false)
  await assert.rejects(Sandbox.getInfo(one.sandboxId), NotFoundError)
})

test('pause and connect keep files', async () => {
  const one = await Sandbox.create({ timeoutMs: 60_000 })
  await one.files.write('kept.txt', 'still here')
  await one.pause()
  assert.equal((await Sandbox.getInfo(one.sandboxId)).state, 'paused')
  const again = await Sandbox.connect(one.sandboxId, { timeoutMs: 60_000 })
  assert.equal(await again.files.read('kept.txt'), 'still here')
  await again.setTimeout(1000)
  await until(async () => !(await again.isRunning()), 'its time is over')
})

test('a command has streams, an environment and an exit code', async () => {
  const seen = []
  const result = await sandbox.commands.run('echo out; echo err >&2; echo $FROM_CREATE$HERE', { envs: { HERE: '2' }, onStdout: (data) => seen.push(data) })
  assert.deepEqual([result.stdout, result.stderr, result.exitCode, seen.join('')], ['out\n12\n', 'err\n', 0, 'out\n12\n'])
  await assert.rejects(sandbox.commands.run('exit 3'), (error) => error instanceof CommandExitError && error.exitCode === 3)
  await assert.rejects(sandbox.commands.run('sleep 60.5', { timeoutMs: 500 }), TimeoutError)
})

test('background commands are listed, fed, joined and killed', async () => {
  const handle = await sandbox.commands.run('read line; echo got $line', { background: true, stdin: true })
  assert.ok((await sandbox.commands.list()).some((process) => process.pid === handle.pid))
  await sandbox.commands.sendStdin(handle.pid, 'it\n')
  assert.equal((await handle.wait()).stdout, 'got it\n')
  const late = await sandbox.commands.run('sleep 0.5; echo late', { background: true })
  assert.equal((await (await sandbox.commands.connect(late.pid)).wait()).stdout, 'late\n')
  const sleeper = await sandbox.commands.run('sleep 60', { background: true })
  assert.equal(await sleeper.kill(), true)
  assert.equal(await sandbox.commands.kill(999999), false)
})

test('files are written, read, listed, renamed, watched and removed', async () => {
  await sandbox.files.makeDir('dir')
  const events = []
  const watch = await sandbox.files.watchDir('dir', (event) => events.push(`${event.type} ${event.name}`))
  await sandbox.files.write('dir/a.txt', 'grüße')
  assert.equal(await sandbox.files.read('dir/a.txt'), 'grüße')
  assert.deepEqual((await sandbox.files.list('dir')).map((entry) => entry.name), ['a.txt'])
  assert.equal((await sandbox.files.getInfo('dir/a.txt')).size, 7)
  await sandbox.files.rename('dir/a.txt', 'dir/b.txt')
  await sandbox.files.remove('dir/b.txt')
  assert.equal(await sandbox.files.exists('dir/b.txt'), false)
  await until(() => events.includes('remove b.txt'), `the last event in ${events}`)
  assert.ok(events.includes('create a.txt'), `${events}`)
  await watch.stop()
  await assert.rejects(sandbox.files.read('dir/b.txt'), NotFoundError)
})

test('a terminal has a size', async () => {
  let output = ''
  const terminal = await sandbox.pty.create({ rows: 30, cols: 100, onData: (data) => { output += new TextDecoder().decode(data) } })
  await sandbox.pty.resize(terminal.pid, { rows: 40, cols: 120 })
  await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size; exit\n'))
  await terminal.wait()
  assert.match(output, /40 120/)
})

test('the template is parsed, built and used by its name', async () => {
  const template = Template().fromDockerfile(process.env.TEMPLATE)
  const built = await Template.build(template, 'turnmill-js', { cpuCount: 2, memoryMB: 4096 })
  const ledger = await (await fetch(`${process.env.E2B_API_URL}/_local/ledger`)).json()
  const [{ detail }] = ledger.filter((row) => row.act === 'build' && row.sandbox === built.templateId)
  const { steps, startCmd } = detail.request
  assert.ok(steps.some((step) => step.type === 'RUN' && /claude-code@\d+\.\d+\.\d+/.test(step.args[0])))
  assert.deepEqual([steps.filter((step) => step.type === 'USER').at(-1).args, startCmd], [['user'], undefined])
  const one = await Sandbox.create('turnmill-js', { timeoutMs: 60_000 })
  assert.equal((await one.getInfo()).templateId, built.templateId)
  await one.kill()
})
