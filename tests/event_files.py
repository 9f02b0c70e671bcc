"""TensorBoard's event files, read record by record with their check sums."""

import struct


def masked(crc):
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(path):
    """The events of a file of records: length, its check sum, bytes, their check sum."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    data, found = path.read_bytes(), []
    while data:
        length, check = struct.unpack("<QI", data[:12])
        assert check == masked(crc32c(data[:8]))
        body, data = data[12 : 12 + length], data[12 + length :]
        assert struct.unpack("<I", data[:4])[0] == masked(crc32c(body))
        found.append(Event.FromString(body))
        data = data[4:]
    return found


def scalars(folder):
    return [
        (event.step, value.tag, value.simple_value)
        for file in sorted(folder.iterdir())
        for event in events(file)
        for value in event.summary.value
    ]
