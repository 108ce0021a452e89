// An MQTT client that does what it is told: one JSON object a line in, one a line out. See clients_test.go.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'

const [modules, host, port, ca, user, version] = process.argv.slice(2)
const mqtt = createRequire(modules + '/')('mqtt')
const v5 = version === '5'
const say = (event) => process.stdout.write(JSON.stringify(event) + '\n')
let client

function connect(c) {
  const options = {
    protocol: 'mqtts', host, port: Number(port), ca: readFileSync(ca), username: user, password: process.env.MQTT_PASSWORD,
    clientId: c.id, clean: c.clean, protocolVersion: v5 ? 5 : 4, reconnectPeriod: 0, resubscribe: false,
  }
  if (v5) options.properties = { sessionExpiryInterval: c.clean ? 0 : 300 }
  if (c.will) options.will = { topic: c.will, payload: 'will', qos: 1, retain: false }
  const mine = mqtt.connect(options)
  client = mine
  let code = 0
  mine.on('connect', (ack) => say({ event: 'done', present: ack.sessionPresent, code: ack.reasonCode ?? ack.returnCode ?? 0 }))
  mine.on('message', (topic, payload, m) => say({ event: 'message', topic, payload: payload.toString(), qos: m.qos, retain: m.retain }))
  mine.on('disconnect', (packet) => { code = packet.reasonCode })
  mine.on('error', (err) => { code = err.code ?? 1 })
  mine.on('close', () => say({ event: 'closed', code }))
}

const done = (err, granted) => say({ event: 'done', code: err ? err.code || 1 : granted?.[0]?.qos ?? 0, text: err?.message })

for await (const line of createInterface({ input: process.stdin })) {
  const c = JSON.parse(line)
  if (c.do === 'connect') connect(c)
  if (c.do === 'subscribe') client.subscribe(c.topic, { qos: c.qos }, done)
  if (c.do === 'publish') client.publish(c.topic, c.payload, { qos: c.qos, retain: c.retain }, (err) => done(err))
  if (c.do === 'leave') client.end()
  if (c.do === 'drop') client.stream.destroy()
}
