"""A real S3 server on loopback, which pyarrow's filesystem talks to."""

import logging
import os

from moto.server import ThreadedMotoServer
from pyarrow import fs

from dist_imsr.addresses import Address

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class ObjectStore:
    """A server with a bucket; after `stop`, `start` brings it back at the same port, with what it held."""

    def __init__(self):
        os.environ.update(ENVIRONMENT)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server, self.port = None, 0
        self.start()
        self._filesystem, _ = fs.FileSystem.from_uri(f"{self.address('')}&allow_bucket_creation=true")
        self._filesystem.create_dir("bucket")

    def start(self):
        self._server = ThreadedMotoServer("127.0.0.1", self.port)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self):
        if self._server is not None:
            self._server.stop()
            self._server = None

    def address(self, name, user=""):
        options = f"endpoint_override=http://127.0.0.1:{self.port}&region=us-east-1"
        return Address(f"s3://{user}bucket/{name}?{options}")

    def readable(self, name):
        """For processes that do not have this one's variables: without a key, which only writing needs."""
        return self.address(name, "anonymous@")

    def put(self, name, data):
        with self._filesystem.open_output_stream(f"bucket/{name}", compression=None) as sink:
            sink.write(data)

    def put_folder(self, folder, name):
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{name}/{path.relative_to(folder)}", path.read_bytes())

    def files(self, name):
        """The bytes of all files of a folder by their paths in it."""
        selector = fs.FileSelector(f"bucket/{name}", recursive=True, allow_not_found=True)
        paths = [info.path for info in self._filesystem.get_file_info(selector) if info.type == fs.FileType.File]
        return {
            path.removeprefix(f"bucket/{name}/"): self._filesystem.open_input_file(path).readall() for path in paths
        }

    def delete(self, name):
        self._filesystem.delete_file(f"bucket/{name}")
