"""Drives a Pub/Sub server with Google's own Python client, as the emulator's users do.

Needs `pip install google-cloud-pubsub` and PUBSUB_EMULATOR_HOST (host:port). Creates its own topic and subscriptions,
says what it does, and exits non-zero on the first mismatch.
"""

import os
import sys
import threading
import uuid

from google.api_core.exceptions import AlreadyExists, InvalidArgument, NotFound
from google.cloud import pubsub_v1

DEADLINE_S = 30
MESSAGES = 300


def check(what, found, expected):
    if found != expected:
        sys.exit(f"MISMATCH {what}: found {found!r}, expected {expected!r}")
    print(f"ok: {what}")


def refused(what, error, call):
    try:
        call()
    except error as refusal:
        print(f"ok: {what}: {refusal}")
    else:
        sys.exit(f"MISMATCH {what}: accepted, expected {error.__name__}")


def pulled(subscriber, subscription, count):
    """Pulls and acknowledges `count` messages."""
    messages = []
    while len(messages) < count:
        response = subscriber.pull(subscription=subscription, max_messages=100, timeout=DEADLINE_S)
        messages += [received.message for received in response.received_messages]
        ack_ids = [received.ack_id for received in response.received_messages]
        if ack_ids:
            subscriber.acknowledge(subscription=subscription, ack_ids=ack_ids)
    return messages


def streamed(subscriber, subscription, count):
    """Receives `count` messages by callback, giving the first one back once."""
    data, done, given_back = [], threading.Event(), []
    lock = threading.Lock()

    def callback(message):
        with lock:
            if not given_back:
                given_back.append(message.message_id)
                message.nack()
                return
            data.append(message.data)
            message.ack()
            if len(data) >= count:
                done.set()

    future = subscriber.subscribe(subscription, callback)
    in_time = done.wait(DEADLINE_S)
    future.cancel()
    future.result(DEADLINE_S)
    check(f"the stream delivers {count} messages in time", in_time, True)
    return data


def main():
    if "PUBSUB_EMULATOR_HOST" not in os.environ:
        sys.exit("PUBSUB_EMULATOR_HOST is not set")
    run = uuid.uuid4().hex[:8]
    publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
    topic = publisher.topic_path("python", f"topic-{run}")
    by_pull = subscriber.subscription_path("python", f"pull-{run}")
    by_stream = subscriber.subscription_path("python", f"stream-{run}")

    check("a topic is created", publisher.create_topic(name=topic).name, topic)
    refused("it exists", AlreadyExists, lambda: publisher.create_topic(name=topic))
    check("it is listed", topic in [found.name for found in publisher.list_topics(project="projects/python")], True)
    even = {"name": by_pull, "topic": topic, "filter": 'attributes.parity = "even"', "ack_deadline_seconds": 30}
    created = subscriber.create_subscription(request=even)
    check("a subscription is created", (created.topic, created.ack_deadline_seconds), (topic, 30))
    subscriber.create_subscription(name=by_stream, topic=topic)
    refused(
        "a malformed filter", InvalidArgument,
        lambda: subscriber.create_subscription(request=even | {"name": by_pull + "-bad", "filter": "attributes"}),
    )
    check("both are listed", sorted(publisher.list_topic_subscriptions(topic=topic)), sorted([by_pull, by_stream]))

    futures = [
        publisher.publish(topic, str(number).encode(), parity="odd" if number % 2 else "even")
        for number in range(MESSAGES)
    ]
    ids = [future.result(DEADLINE_S) for future in futures]
    check(f"{MESSAGES} messages are published, each with its id", len(set(ids)), MESSAGES)

    messages = pulled(subscriber, by_pull, MESSAGES // 2)
    evens = sorted(str(number).encode() for number in range(0, MESSAGES, 2))
    check("the filtered half is pulled", sorted(message.data for message in messages), evens)
    check("with ids, times and attributes", all(
        message.message_id in ids and message.publish_time and message.attributes["parity"] == "even"
        for message in messages
    ), True)
    at_once = {"subscription": by_pull, "max_messages": 1, "return_immediately": True}
    empty = subscriber.pull(request=at_once, timeout=DEADLINE_S)
    check("nothing is left", len(empty.received_messages), 0)

    data = streamed(subscriber, by_stream, MESSAGES)
    check("the stream delivers each once", sorted(data), sorted(str(number).encode() for number in range(MESSAGES)))

    for subscription in (by_pull, by_stream):
        subscriber.delete_subscription(subscription=subscription)
    refused(
        "a deleted subscription", NotFound,
        lambda: subscriber.pull(subscription=by_pull, max_messages=1, timeout=DEADLINE_S),
    )
    publisher.delete_topic(topic=topic)
    refused("a deleted topic", NotFound, lambda: publisher.get_topic(topic=topic))
    subscriber.close()
    print("all well")


if __name__ == "__main__":
    main()
