"""Prints a shared access signature for everything in an account, good for a day: ACCOUNT KEY."""

import base64
import datetime
import hashlib
import hmac
import sys
import urllib.parse

account, key = sys.argv[1:3]
end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)
fields = {
    "sv": "2020-08-04",
    "ss": "b",
    "srt": "sco",
    "sp": "rwdlac",
    "se": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
    "spr": "https,http",
}
text = "".join(
    line + "\n"
    for line in (account, fields["sp"], fields["ss"], fields["srt"], "", fields["se"], "", fields["spr"], fields["sv"])
)
digest = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
fields["sig"] = base64.b64encode(digest).decode()
print(urllib.parse.urlencode(fields))
