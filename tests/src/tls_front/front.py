"""Ends TLS on a port of 127.0.0.1 and passes the bytes on to another: PORT UPSTREAM CERTIFICATE KEY."""

import asyncio
import ssl
import sys

port, upstream, certificate, key = sys.argv[1:5]


async def copy(reader, writer):
    try:
        while data := await reader.read(1 << 20):
            writer.write(data)
            await writer.drain()
    except (OSError, ssl.SSLError):
        pass
    finally:
        writer.close()


async def serve(reader, writer):
    try:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", int(upstream))
    except OSError:
        writer.close()
        return
    await asyncio.gather(copy(reader, to_server), copy(from_server, writer))


async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(serve, "127.0.0.1", int(port), ssl=context)
    await server.serve_forever()


asyncio.run(main())
