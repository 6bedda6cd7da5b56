"""The way most push endpoints are written: Flask, and requests.get for the URL in the envelope."""

import base64
import os

import requests
import urllib3.util.connection
from flask import Flask, request

app = Flask(__name__)

# Every host is at the edge; what a name server would say.
_edge_host, _edge_port = os.environ["EDGE"].split(":")
_connect = urllib3.util.connection.create_connection
urllib3.util.connection.create_connection = (
    lambda _address, *more, **named: _connect((_edge_host, int(_edge_port)), *more, **named))


@app.route("/", methods=["POST"])
def push():
    """Answers once the URL was fetched."""
    envelope = request.get_json()
    if not envelope or "message" not in envelope:
        return "not a push", 400
    url = base64.b64decode(envelope["message"]["data"]).decode().strip()
    response = requests.get(url)
    return ("", 204) if response.ok else ("", 503)
