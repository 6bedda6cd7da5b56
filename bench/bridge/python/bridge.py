"""The plainest bridge that one would write in Python with the two official clients.

    bridge.py BROKER GROUP TOPIC PUBSUB_TOPIC     (and PUBSUB_EMULATOR_HOST)

It promises little: an offset is stored when its own message is accepted, even if one before it is not yet.
"""

import signal
import sys

from confluent_kafka import Consumer
from google.cloud import pubsub_v1


def main():
    broker, group, topic, pubsub_topic = sys.argv[1:]
    settings = {"bootstrap.servers": broker, "group.id": group, "auto.offset.reset": "earliest",
                "enable.auto.offset.store": False}
    consumer = Consumer(settings)
    publisher = pubsub_v1.PublisherClient(
        batch_settings=pubsub_v1.types.BatchSettings(max_messages=1000, max_bytes=9_000_000, max_latency=0.01),
        publisher_options=pubsub_v1.types.PublisherOptions(flow_control=pubsub_v1.types.PublishFlowControl(
            message_limit=20_000, byte_limit=64 << 20,
            limit_exceeded_behavior=pubsub_v1.types.LimitExceededBehavior.BLOCK)))
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))

    consumer.subscribe([topic])
    while not stopping:
        record = consumer.poll(0.2)
        if record is None:
            continue
        if record.error():
            print(record.error(), file=sys.stderr)
            continue
        attributes = {"kafka-topic": record.topic(), "kafka-partition": str(record.partition()),
                      "kafka-offset": str(record.offset()), "kafka-timestamp": str(record.timestamp()[1])}
        accepted = publisher.publish(pubsub_topic, record.value(), **attributes)
        accepted.add_done_callback(lambda future, record=record: store(consumer, record, future))
    publisher.stop()
    consumer.close()


def store(consumer, record, future):
    if future.exception() is None:
        consumer.store_offsets(record)
    else:
        print(future.exception(), file=sys.stderr)


if __name__ == "__main__":
    main()
