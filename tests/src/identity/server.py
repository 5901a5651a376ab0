"""Hands out temporary credentials as the clouds' own services do; told everything by one JSON argument."""

import base64
import datetime
import http.server
import json
import re
import secrets
import socketserver
import ssl
import sys
import threading
import time
import urllib.parse
import urllib.request

told = json.loads(sys.argv[1])
log = open(told["log"], "w", buffering=1)
# Clients ask again five minutes before the end.
lifetime = 300 + told["renew_after"] if told["renew_after"] else 3600
valid = told["renew_after"] + 2 if told["renew_after"] else 3600


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def azure_token():
    now = int(time.time())
    claims = {
        "aud": "https://storage.azure.com",
        "iss": f"https://sts.windows.net/{told['tenant']}/",
        "iat": now,
        "nbf": now - 1,
        "exp": now + valid,
        "appid": told["client"],
        "uti": secrets.token_hex(8),
    }
    head = {"typ": "JWT", "alg": "RS256", "kid": "tests"}
    return ".".join([b64(json.dumps(head).encode()), b64(json.dumps(claims).encode()), b64(secrets.token_bytes(256))])


def end():
    return (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=lifetime)).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )


def amazon_keys(kind):
    return {
        "Code": "Success",
        "Type": "AWS-HMAC",
        "AccessKeyId": f"ASIA{kind.upper()}{secrets.token_hex(4).upper()}",
        "SecretAccessKey": secrets.token_hex(20),
        "Token": secrets.token_hex(40),
        "Expiration": end(),
    }


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, kind, status, body):
        if kind:
            log.write(f"{kind} {'ok' if status == 200 else 'refused'}\n")
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_PUT(self):
        if self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]:
            return self.answer(None, 200, "session-of-the-instance")
        self.answer(None, 404, "")

    def do_GET(self):
        path, _, query = self.path.partition("?")
        asked = dict(urllib.parse.parse_qsl(query))
        role = "/latest/meta-data/iam/security-credentials/"
        if path.startswith(role):
            if self.headers["X-aws-ec2-metadata-token"] != "session-of-the-instance":
                return self.answer("imds", 401, "")
            if path == role:
                return self.answer(None, 200, "tests")
            return self.answer("imds", 200, amazon_keys("imds"))
        if path == "/v2/credentials/tests":
            return self.answer("ecs", 200, amazon_keys("ecs"))
        if path == "/v1/credentials":
            if self.headers["Authorization"] != told["pod"]:
                return self.answer("eks", 401, "")
            return self.answer("eks", 200, amazon_keys("eks"))
        if path == "/metadata/identity/oauth2/token":
            is_asked = self.headers["Metadata"] == "true" and asked.get("resource", "").startswith(
                "https://storage.azure.com"
            )
            if not is_asked or asked.get("client_id", told["client"]) != told["client"]:
                error = {"error": "invalid_request", "error_description": "Identity not found"}
                return self.answer("azure-imds", 400, error)
            token = {
                "access_token": azure_token(),
                "client_id": told["client"],
                "expires_in": str(lifetime),
                "expires_on": str(int(time.time()) + lifetime),
                "not_before": str(int(time.time())),
                "resource": asked["resource"],
                "token_type": "Bearer",
            }
            return self.answer("azure-imds", 200, token)
        self.answer(None, 404, "")

    def do_POST(self):
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        asked = dict(urllib.parse.parse_qsl(query)) | dict(urllib.parse.parse_qsl(body))
        if path.endswith("/oauth2/v2.0/token"):
            return self.authority(path.split("/")[1], asked)
        if asked.get("Action") == "AssumeRoleWithWebIdentity" and told["sts"]:
            return self.sts(asked)
        self.answer(None, 404, "")

    def authority(self, tenant, asked):
        kind = "azure-workload" if "client_assertion" in asked else "azure-secret"
        is_known = asked.get("client_assertion") == told["pod"] or asked.get("client_secret") == told["secret"]
        if tenant != told["tenant"]:
            error = "AADSTS90002: Tenant not found."
        elif asked.get("client_id") != told["client"]:
            error = "AADSTS700016: Application was not found in the directory."
        elif asked.get("scope") != "https://storage.azure.com/.default":
            error = "AADSTS70011: The provided value for the input parameter 'scope' is not valid."
        elif not is_known and kind == "azure-workload":
            error = "AADSTS70021: No matching federated identity record found for presented assertion."
        elif not is_known:
            error = "AADSTS7000215: Invalid client secret provided."
        else:
            token = {"token_type": "Bearer", "expires_in": lifetime, "access_token": azure_token()}
            return self.answer(kind, 200, token)
        status = 401 if "7000215" in error or "70021:" in error else 400
        self.answer(kind, status, {"error": "invalid_client", "error_description": error})

    def sts(self, asked):
        if asked.get("WebIdentityToken") != told["pod"] or asked.get("RoleArn") != told["role"]:
            is_token = asked.get("WebIdentityToken") != told["pod"]
            code, status = ("InvalidIdentityToken", 400) if is_token else ("AccessDenied", 403)
            what = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>no role for this token</Message></Error>"
            return self.answer("sts", status, f"<ErrorResponse>{what}</ErrorResponse>")
        # As a form: moto looks for the action there alone, Amazon in both places.
        request = urllib.request.Request(told["sts"], data=urllib.parse.urlencode(asked).encode())
        trusting = ssl.create_default_context(cafile=told["authority"])
        with urllib.request.urlopen(request, timeout=10, context=trusting) as answer:
            text = answer.read().decode()
        self.answer("sts", 200, re.sub("<Expiration>.*?<", f"<Expiration>{end()}<", text))


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def handle_error(self, request, address):
        """A client that does not trust the certificate, or goes away: it says so itself."""


context = None
if told["tls"]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(told["certificate"], told["key"])
for is_tls, addresses in ((False, told["plain"]), (True, told["tls"])):
    for address in addresses:
        host, port = address.rsplit(":", 1)
        server = Server((host, int(port)), Handler)
        if is_tls:
            # The handshake is the handler's: one that never comes holds up nobody.
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever).start()
