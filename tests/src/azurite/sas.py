"""Prints a shared access signature of a container: ACCOUNT KEY CONTAINER SECONDS-FROM-NOW."""

import base64
import datetime
import hashlib
import hmac
import sys
import urllib.parse

account, key, container, seconds = sys.argv[1:5]
now = datetime.datetime.now(datetime.timezone.utc)


def stamp(seconds):
    return (now + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


fields = {
    "sp": "rwdl",
    "st": stamp(min(0, int(seconds)) - 3600),
    "se": stamp(int(seconds)),
    "spr": "https,http",
    "sv": "2020-12-06",
    "sr": "c",
}
resource = f"/blob/{account}/{container}"
# sp st se resource si sip spr sv sr, then the snapshot, the encryption scope and five headers of answers, all empty.
lines = [fields["sp"], fields["st"], fields["se"], resource, "", "", fields["spr"], fields["sv"], fields["sr"]] + [""] * 7
digest = hmac.new(base64.b64decode(key), "\n".join(lines).encode(), hashlib.sha256).digest()
print(urllib.parse.urlencode(fields | {"sig": base64.b64encode(digest).decode()}))
