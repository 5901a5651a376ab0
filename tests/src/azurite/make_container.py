"""Makes a container with a request signed by the account's key: ENDPOINT ACCOUNT KEY CONTAINER [AUTHORITY]."""

import base64
import email.utils
import hashlib
import hmac
import ssl
import sys
import urllib.request

endpoint, account, key, container = sys.argv[1:5]
date = email.utils.formatdate(usegmt=True)
version = "2021-08-06"
headers = f"x-ms-date:{date}\nx-ms-version:{version}\n"
# VERB, eleven standard headers that are empty, ours, and the resource: the account twice, as the emulator wants it.
text = "PUT" + "\n" * 12 + headers + f"/{account}/{account}/{container}\nrestype:container"
digest = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
request = urllib.request.Request(f"{endpoint}/{container}?restype=container", method="PUT")
request.add_header("x-ms-date", date)
request.add_header("x-ms-version", version)
request.add_header("Authorization", f"SharedKey {account}:{base64.b64encode(digest).decode()}")
context = ssl.create_default_context(cafile=sys.argv[5]) if len(sys.argv) > 5 else None
with urllib.request.urlopen(request, timeout=10, context=context) as answer:
    assert answer.status == 201, answer.status
