"""An MQTT client that does what it is told: one JSON object a line in, one a line out. See clients_test.go."""
import json
import os
import socket
import sys
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

host, port, ca, user, version = sys.argv[1:6]
v5 = version == "5"
client = None
lock = threading.Lock()


def say(**event):
    with lock:
        print(json.dumps(event), flush=True)


def connect(c):
    global client
    kept = {} if v5 else {"clean_session": c["clean"]}
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=c["id"], protocol=mqtt.MQTTv5 if v5 else mqtt.MQTTv311,
                         reconnect_on_failure=False, **kept)
    client.username_pw_set(user, os.environ["MQTT_PASSWORD"])
    client.tls_set(ca)
    client.on_connect = lambda cl, u, flags, code, p: say(event="done", present=flags.session_present, code=code.value)
    client.on_subscribe = lambda cl, u, mid, codes, p: say(event="done", code=codes[0].value)
    client.on_publish = lambda cl, u, mid, code, p: say(event="done", code=code.value)
    client.on_message = lambda cl, u, m: say(event="message", topic=m.topic, payload=m.payload.decode(), qos=m.qos, retain=m.retain)
    client.on_disconnect = lambda cl, u, flags, code, p: say(event="closed", code=code.value)
    if c.get("will"):
        client.will_set(c["will"], "will", 1, False)
    if v5:
        asks = Properties(PacketTypes.CONNECT)
        asks.SessionExpiryInterval = 0 if c["clean"] else 300
        client.connect(host, int(port), 60, clean_start=c["clean"], properties=asks)
    else:
        client.connect(host, int(port), 60)
    client.loop_start()


for line in sys.stdin:
    c = json.loads(line)
    match c["do"]:
        case "connect":
            connect(c)
        case "subscribe":
            client.subscribe(c["topic"], c["qos"])
        case "publish":
            client.publish(c["topic"], c["payload"], c["qos"], c["retain"])
        case "leave":
            client.disconnect()
        case "drop":
            client.socket().shutdown(socket.SHUT_RDWR)
