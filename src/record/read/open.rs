//! Opening: a file as text, unpacked, within bounds; what is no such file is named.

use std::cell::Cell;
use std::fs::{self, File, FileType};
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::rc::Rc;

use flate2::read::MultiGzDecoder;

use super::ReadError;

/// Bytes that a packed file may always unpack to.
const UNPACKED_FREE: u64 = 64 << 20;

/// How many times its size a packed file may unpack to. JSON of people and models packs 3 to 20 times;
/// a gzip bomb 1,000 times, one of zstd 30,000 times.
const RATIO_MAX: u64 = 200;

/// Bytes that are looked at to see what a file is: a tar archive says it in the 257th.
const HEAD: usize = 512;

/// What the first bytes of a file say that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Text, as far as can be seen.
    Text,
    Gzip,
    Zstd,
    /// Something else: its name, and what to do.
    Other(&'static str, &'static str),
}

/// Beginnings of files that are no text.
const BEGINNINGS: &[(&[u8], Kind)] = &[
    (b"\x1f\x8b", Kind::Gzip),
    (b"\x28\xb5\x2f\xfd", Kind::Zstd),
    (b"PAR1", Kind::Other("a Parquet file", "say so: `format: parquet`")),
    (b"BZh", Kind::Other("compressed with bzip2", "unpack it (`bunzip2`): gzip and zstd are read")),
    (
        b"\xfd7zXZ\0",
        Kind::Other("compressed with xz", "unpack it (`unxz`): gzip and zstd are read"),
    ),
    (
        b"\x04\x22\x4d\x18",
        Kind::Other("compressed with lz4", "unpack it (`unlz4`): gzip and zstd are read"),
    ),
    (b"PK\x03\x04", Kind::Other("a ZIP archive", "unpack it and name the file in it")),
    (b"7z\xbc\xaf\x27\x1c", Kind::Other("a 7z archive", "unpack it and name the file in it")),
    (b"ARROW1", Kind::Other("an Arrow file", "write it as Parquet")),
    (b"SQLite format 3\0", Kind::Other("an SQLite database", "export its rows to Parquet or CSV")),
    (b"\xff\xfe", Kind::Other("text in UTF-16", "convert it (`iconv -f UTF-16 -t UTF-8`)")),
    (b"\xfe\xff", Kind::Other("text in UTF-16", "convert it (`iconv -f UTF-16 -t UTF-8`)")),
    (
        b"version https://git-lfs.github.com/spec/",
        Kind::Other(
            "a Git LFS pointer, not the file that it stands for",
            "fetch it (`git lfs pull`)",
        ),
    ),
    (b"<!DOCTYPE", Kind::Other("a web page", "download the file itself")),
    (b"<html", Kind::Other("a web page", "download the file itself")),
];

fn kind(head: &[u8]) -> Kind {
    let is_skippable = head.len() > 3 && head[0] & 0xf0 == 0x50 && head[1..4] == *b"\x2a\x4d\x18";
    if is_skippable {
        return Kind::Zstd;
    }
    if head.get(257..262) == Some(b"ustar") {
        return Kind::Other("a tar archive", "unpack it (`tar -xf`) and name the file in it");
    }
    let is_bzip2 = |head: &[u8]| head.get(4..10) == Some(b"1AY&SY");
    let begins = |(beginning, _): &&(&[u8], Kind)| {
        head.starts_with(beginning) && (**beginning != *b"BZh" || is_bzip2(head))
    };
    BEGINNINGS.iter().find(begins).map_or(Kind::Text, |(_, kind)| *kind)
}

pub(super) fn at(path: &Path, line: u64) -> impl Fn(io::Error) -> ReadError {
    move |source| ReadError::File { path: path.to_owned(), line, source }
}

/// Opens a file that is one: to open a pipe waits for who writes to it, and a device may never end.
pub fn open(path: &Path) -> io::Result<File> {
    let found = fs::metadata(path)?;
    match not_a_file(found.file_type()) {
        Some(what) => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what} and not a file")))
        }
        None => File::open(path),
    }
}

/// What stands where a file should, if it is something else.
#[cfg(unix)]
fn not_a_file(found: FileType) -> Option<&'static str> {
    use std::os::unix::fs::FileTypeExt as _;
    match found {
        found if found.is_fifo() => Some("a pipe"),
        found if found.is_socket() => Some("a socket"),
        found if found.is_char_device() || found.is_block_device() => Some("a device"),
        found if found.is_dir() => Some("a folder"),
        _ => None,
    }
}

/// What stands where a file should, if it is something else.
#[cfg(not(unix))]
fn not_a_file(found: FileType) -> Option<&'static str> {
    found.is_dir().then_some("a folder")
}

/// The text of a file, unpacked if its first bytes say that it is packed, whatever its name.
pub(super) fn text(path: &Path) -> Result<Box<dyn BufRead>, ReadError> {
    let read = Rc::new(Cell::new(0));
    let file = Counted { of: open(path).map_err(at(path, 0))?, read: Rc::clone(&read) };
    let file: Box<dyn Read> = Box::new(file);
    let (head, file) = peek(file).map_err(at(path, 0))?;
    let unpacked: Box<dyn Read> = match kind(&head) {
        Kind::Text => return Ok(file),
        Kind::Other(what, help) => return Err(other(path, format!("it is {what}"), help)),
        Kind::Gzip => Box::new(MultiGzDecoder::new(file)),
        Kind::Zstd => {
            Box::new(zstd::stream::read::Decoder::with_buffer(file).map_err(at(path, 0))?)
        }
    };
    let bounded: Box<dyn Read> = Box::new(Unpacked { of: unpacked, packed: read, bytes: 0 });
    let (head, text) = peek(bounded).map_err(at(path, 0))?;
    match kind(&head) {
        Kind::Text => Ok(text),
        Kind::Gzip | Kind::Zstd => {
            Err(other(path, "it is compressed twice".to_owned(), "unpack it once"))
        }
        Kind::Other(what, help) => {
            Err(other(path, format!("it is compressed, and what is in it is {what}"), help))
        }
    }
}

/// Says that a file that is to be Parquet is something else, if that can be seen.
pub(super) fn check_parquet(path: &Path, file: &mut File) -> Result<(), ReadError> {
    use std::io::Seek as _;
    let mut head = [0; 4];
    let length = file.metadata().map_err(at(path, 0))?.len();
    let begun = file.read_exact(&mut head);
    file.rewind().map_err(at(path, 0))?;
    if begun.is_ok() && head == *b"PAR1" {
        return Ok(());
    }
    let (what, help) = match peek(Box::new(&mut *file)).map(|(head, _)| kind(&head)) {
        _ if length == 0 => ("it is empty, and no Parquet file", "write it again"),
        Ok(Kind::Gzip) => {
            ("it is compressed with gzip", "unpack it (`gunzip`): Parquet packs its columns itself")
        }
        Ok(Kind::Zstd) => {
            ("it is compressed with zstd", "unpack it (`unzstd`): Parquet packs its columns itself")
        }
        Ok(Kind::Other(what, help)) => return Err(other(path, format!("it is {what}"), help)),
        _ => (
            "it is no Parquet file",
            "say what it holds: `format: jsonl`, `parquet`, `csv` or `hh-rlhf`",
        ),
    };
    Err(other(path, what.to_owned(), help))
}

fn other(path: &Path, detail: String, help: &str) -> ReadError {
    ReadError::Other { path: path.to_owned(), detail, help: help.to_owned() }
}

/// What its name says of a file that is not packed, in case no row of it can be read.
pub(super) fn note(path: &Path) -> Option<String> {
    let ending = path.extension()?.to_str()?;
    let is_packed_by_name = matches!(ending, "gz" | "zst" | "zstd");
    let mut head = Vec::new();
    open(path).ok()?.take(HEAD as u64).read_to_end(&mut head).ok()?;
    (is_packed_by_name && kind(&head) == Kind::Text)
        .then(|| format!("; its name ends in \".{ending}\", and it is not compressed"))
}

/// The first bytes of what is read, and all of it. What cannot be read comes after what can.
fn peek<'a>(mut from: Box<dyn Read + 'a>) -> io::Result<(Vec<u8>, Box<dyn BufRead + 'a>)> {
    let mut head = Vec::with_capacity(HEAD);
    let error = from.by_ref().take(HEAD as u64).read_to_end(&mut head).err();
    if head.is_empty()
        && let Some(error) = error
    {
        return Err(error);
    }
    let rest = BufReader::with_capacity(1 << 16, Late(error).chain(from));
    Ok((head.clone(), Box::new(Cursor::new(head).chain(rest))))
}

/// An error that was met before it was due.
struct Late(Option<io::Error>);

impl Read for Late {
    fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}

/// A file that counts what was read of it.
struct Counted {
    of: File,
    read: Rc<Cell<u64>>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.of.read(buffer)?;
        self.read.set(self.read.get() + bytes as u64);
        Ok(bytes)
    }
}

/// What is unpacked, as long as it is no bomb.
struct Unpacked {
    of: Box<dyn Read>,
    packed: Rc<Cell<u64>>,
    bytes: u64,
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.of.read(buffer)?;
        self.bytes += bytes as u64;
        let most = (self.packed.get().saturating_mul(RATIO_MAX)).max(UNPACKED_FREE);
        if self.bytes > most {
            return Err(io::Error::other(format!(
                "{} bytes of it unpack to more than {} MiB, over {RATIO_MAX} times as many, as a \
                 decompression bomb does; if it is none, unpack it first",
                self.packed.get(),
                most >> 20
            )));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn opened(name: &str, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let shown =
            |error: ReadError| error.to_string().replace(&*folder.path().to_string_lossy(), "");
        let mut all = Vec::new();
        let mut text = text(&path).map_err(shown)?;
        text.read_to_end(&mut all).map_err(at(&path, 0)).map_err(shown)?;
        Ok(all)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(text).unwrap();
        packed.finish().unwrap()
    }

    fn zstandard(text: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(text, 3).unwrap()
    }

    #[test]
    fn every_member_of_a_gzip_file_and_every_frame_of_a_zstd_file_is_unpacked() {
        let two = |pack: fn(&[u8]) -> Vec<u8>| [pack(b"one\n"), pack(b""), pack(b"two\n")].concat();
        assert_eq!(opened("a.gz", &two(gzip)).unwrap(), b"one\ntwo\n");
        assert_eq!(opened("a.zst", &two(zstandard)).unwrap(), b"one\ntwo\n");
        assert_eq!(opened("a.zst", &zstandard(b"one\n")).unwrap(), b"one\n");
        let skippable = [&b"\x50\x2a\x4d\x18\x02\0\0\0ab"[..], &zstandard(b"one\n")].concat();
        assert_eq!(opened("a.zst", &skippable).unwrap(), b"one\n");
        // The bytes say what a file is, not its name.
        assert_eq!(opened("a.zst", &gzip(b"one\n")).unwrap(), b"one\n");
        assert_eq!(opened("a.gz", b"one\n").unwrap(), b"one\n");
        for packed in [two(gzip), two(zstandard)] {
            let torn = opened("a", &packed[..packed.len() - 5]).unwrap_err();
            assert!(torn.starts_with("/a: after line 0: "), "{torn}");
        }
    }

    #[test]
    fn what_is_no_text_is_named() {
        let said = |bytes: &[u8]| opened("a", bytes).unwrap_err();
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        insta::assert_snapshot!(
            [
                said(b"PAR1\x15\x04"),
                said(b"\xfd7zXZ\0\0\x04"),
                said(b"BZh91AY&SY"),
                said(b"\xff\xfe{\0"),
                said(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
                said(&tar),
                said(&gzip(&tar)),
                said(&gzip(&zstandard(b"one"))),
            ]
            .join("\n"),
            @r"
        /a: it is a Parquet file: say so: `format: parquet`
        /a: it is compressed with xz: unpack it (`unxz`): gzip and zstd are read
        /a: it is compressed with bzip2: unpack it (`bunzip2`): gzip and zstd are read
        /a: it is text in UTF-16: convert it (`iconv -f UTF-16 -t UTF-8`)
        /a: it is a Git LFS pointer, not the file that it stands for: fetch it (`git lfs pull`)
        /a: it is a tar archive: unpack it (`tar -xf`) and name the file in it
        /a: it is compressed, and what is in it is a tar archive: unpack it (`tar -xf`) and name the file in it
        /a: it is compressed twice: unpack it once
        "
        );
        assert_eq!(opened("a", b"BZhang,prompt\n").unwrap(), b"BZhang,prompt\n");
    }

    #[test]
    fn a_bomb_is_an_error_and_what_is_only_repetitive_is_not() {
        let large = vec![b'\n'; (UNPACKED_FREE + (1 << 20)) as usize];
        for packed in [gzip(&large), zstandard(&large)] {
            let said = opened("a", &packed).unwrap_err();
            assert!(said.contains("as a decompression bomb does"), "{said}");
        }
        let small = &large[..1 << 20];
        assert_eq!(opened("a", &gzip(small)).unwrap(), small);
    }

    #[cfg(unix)]
    #[test]
    fn a_socket_a_device_and_a_folder_are_no_files() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let said = |path: &Path| open(path).unwrap_err().to_string();
        assert!(said(&socket).starts_with("it is a socket"), "{}", said(&socket));
        assert!(said(Path::new("/dev/zero")).starts_with("it is a device"));
        assert!(said(folder.path()).starts_with("it is a folder"));
    }
}
