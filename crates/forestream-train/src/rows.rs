//! Rows of a data file, whatever its format: JSON Lines, a JSON list, CSV, TSV or Parquet, as the file's name says.
//!
//! A row is a JSON object; cells of CSV are text. A row that cannot be read is an error with file, place and remedy, and
//! comes up where the row is looked at. Must not know what the fields mean.

use std::fmt;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use csv::StringRecord;
use parquet::errors::ParquetError;
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as ParquetRow};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// Where a row stands in its file, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a file of lines: the first line of the row.
    Line(usize),
    /// Elsewhere: the row's number.
    Row(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => write!(f, "line {number}"),
            Self::Row(number) => write!(f, "row {number}"),
        }
    }
}

/// Errors of reading rows.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not of the format that its name promises.
    #[error("{path}: {problem}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A row that cannot be read.
    #[error("{path}, {place}: {problem}")]
    Row {
        /// The file.
        path: PathBuf,
        /// Which row.
        place: Place,
        /// What is wrong, and what to do.
        problem: String,
    },
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Where it stands.
    pub place: Place,
    /// What it says.
    pub fields: Map<String, Value>,
}

/// A data file in memory.
#[derive(Clone, Debug)]
pub struct RowFile {
    path: PathBuf,
    bytes: Bytes,
}

/// Rows of a file, one after another.
type Rows<'a> = Box<dyn Iterator<Item = Result<Row, RowError>> + 'a>;

impl RowFile {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(path: &Path) -> Result<Self, RowError> {
        let bytes = std::fs::read(path).map_err(|source| RowError::Read { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), bytes: bytes.into() })
    }

    /// SHA-256 of the file, in hexadecimal.
    pub fn sha256(&self) -> String {
        hexadecimal(&Sha256::digest(&self.bytes))
    }

    /// The rows, in the order of the file; blank lines are none.
    ///
    /// # Errors
    /// A file that is not of the format that its name promises.
    pub fn rows(&self) -> Result<Rows<'_>, RowError> {
        let extension = self.path.extension().map(std::ffi::OsStr::to_ascii_lowercase);
        match extension.as_ref().and_then(|extension| extension.to_str()) {
            Some("csv") => self.separated(b','),
            Some("tsv") => self.separated(b'\t'),
            Some("parquet") => self.parquet(),
            Some("json") if self.json().trim_ascii_start().starts_with(b"[") => self.list(),
            _ => Ok(self.lines()),
        }
    }

    /// The bytes without the mark that some programs put before UTF-8, and that JSON does not know.
    fn json(&self) -> &[u8] {
        self.bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&self.bytes)
    }

    fn lines(&self) -> Rows<'_> {
        let lines = self.json().split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).enumerate();
        let lines = lines.filter(|(_, line)| !line.is_empty());
        Box::new(lines.map(|(index, line)| {
            let place = Place::Line(index + 1);
            let text = std::str::from_utf8(line);
            let text = text.map_err(|_| self.row_error(place, "not UTF-8 text; save the file as UTF-8".to_owned()))?;
            let value = serde_json::from_str(text).map_err(|error| describe_json(&error));
            self.object(place, value)
        }))
    }

    fn list(&self) -> Result<Rows<'_>, RowError> {
        let values: Vec<Value> = serde_json::from_slice(self.json())
            .map_err(|error| self.format_error(format!("not a JSON list: {error}; correct the file")))?;
        let rows = values.into_iter().enumerate();
        Ok(Box::new(rows.map(|(index, value)| self.object(Place::Row(index + 1), Ok(value)))))
    }

    fn separated(&self, delimiter: u8) -> Result<Rows<'_>, RowError> {
        let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(&*self.bytes);
        let names = reader.headers().map_err(|error| self.format_error(describe_csv(&error)))?.clone();
        let twice = names.iter().enumerate().find(|&(index, name)| names.iter().skip(index + 1).any(|n| n == name));
        if let Some((_, name)) = twice {
            return Err(self.format_error(format!("the first line names the column `{name}` twice; rename one")));
        }
        Ok(Box::new(reader.into_records().map(move |record| {
            let record =
                record.map_err(|error| self.row_error(self.line_of(error.position()), describe_csv(&error)))?;
            Ok(Row { place: self.line_of(record.position()), fields: cells(&names, &record) })
        })))
    }

    /// The line of a record. The reader's position stands before the line breaks that are left of the record above.
    fn line_of(&self, position: Option<&csv::Position>) -> Place {
        let Some(position) = position else { return Place::Line(1) };
        let ahead = self.bytes.get(position.byte() as usize..).unwrap_or_default();
        let breaks = ahead.iter().take_while(|byte| b"\r\n".contains(byte)).filter(|&&byte| byte == b'\n').count();
        Place::Line(position.line() as usize + breaks)
    }

    fn parquet(&self) -> Result<Rows<'_>, RowError> {
        let problem = |error| format!("not a readable Parquet file: {error}; fetch it again, or save it as JSON Lines");
        let open = || SerializedFileReader::new(self.bytes.clone()).map(|file| RowIter::from_file_into(Box::new(file)));
        let mut reader = Some(caught(open).map_err(|error| self.format_error(problem(error)))?);
        Ok(Box::new((1..).map_while(move |number| {
            let rows = reader.as_mut()?;
            let fields = caught(|| Ok(rows.next().transpose()?.map(|row| object_of(&row)))).transpose()?;
            let place = Place::Row(number);
            Some(fields.map(|fields| Row { place, fields }).map_err(|error| {
                // The reader's columns are out of step now: what it says next is wrong, and it may never come to an end.
                reader = None;
                self.row_error(place, problem(error))
            }))
        })))
    }

    fn object(&self, place: Place, value: Result<Value, String>) -> Result<Row, RowError> {
        let problem = match value {
            Ok(Value::Object(fields)) => return Ok(Row { place, fields }),
            Ok(other) => format!("it is {}", kind_of(&other)),
            Err(problem) => problem,
        };
        Err(self.row_error(place, format!("not a JSON object: {problem}; correct the row")))
    }

    /// An error about one row of this file.
    pub fn row_error(&self, place: Place, problem: String) -> RowError {
        RowError::Row { path: self.path.clone(), place, problem }
    }

    fn format_error(&self, problem: String) -> RowError {
        RowError::Format { path: self.path.clone(), problem }
    }
}

/// Reads with the Parquet library, which panics on damaged files; that is an error of the file, too.
///
/// The panic's own message still reaches standard error: the hook that prints it belongs to the whole program.
fn caught<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    match panic::catch_unwind(AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(message) => {
            let text = message.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| message.downcast_ref::<&str>().copied());
            Err(text.unwrap_or("it is damaged").to_owned())
        }
    }
}

fn object_of(row: &ParquetRow) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), json_of(field))).collect()
}

/// A cell as JSON. Dates and times stay the numbers that they are in the file, because the library panics on those that
/// its calendar does not know; everything else is as the library says it.
fn json_of(field: &Field) -> Value {
    match field {
        Field::Date(number) | Field::TimeMillis(number) => (*number).into(),
        Field::TimeMicros(number) | Field::TimestampMillis(number) | Field::TimestampMicros(number) => (*number).into(),
        Field::Group(row) => Value::Object(object_of(row)),
        Field::ListInternal(list) => list.elements().iter().map(json_of).collect(),
        Field::MapInternal(map) => {
            let name = |key: &Field| match json_of(key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            Value::Object(map.entries().iter().map(|(key, value)| (name(key), json_of(value))).collect())
        }
        plain => plain.to_json_value(),
    }
}

/// The cells of a record under the names of their columns.
fn cells(names: &StringRecord, record: &StringRecord) -> Map<String, Value> {
    names.iter().zip(record).map(|(name, cell)| (name.to_owned(), Value::String(cell.to_owned()))).collect()
}

/// An error of one line: the line's number is that of the row, which is said beside it.
fn describe_json(error: &serde_json::Error) -> String {
    error.to_string().replace(&format!(" at line {} column", error.line()), " at column")
}

fn describe_csv(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "not UTF-8 text; save the file as UTF-8".to_owned(),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("the row has {len} cells, but the first line names {expected_len} columns; correct the row")
        }
        _ => format!("{error}; correct the row"),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string never fails");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::data_type::{ByteArrayType, DataType, Int32Type, Int64Type, Int96Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
    use parquet::schema::parser::parse_message_type;
    use serde_json::json;

    use super::*;

    fn file(name: &str, bytes: impl Into<Bytes>) -> RowFile {
        RowFile { path: name.into(), bytes: bytes.into() }
    }

    /// The rows up to the first error.
    fn read(name: &str, bytes: impl Into<Bytes>) -> Result<Vec<(Place, Value)>, String> {
        let file = file(name, bytes);
        let rows = file.rows().map_err(|error| error.to_string())?;
        rows.map(|row| row.map(|row| (row.place, row.fields.into())).map_err(|error| error.to_string())).collect()
    }

    /// A file with the columns of `schema`; `write` puts them into its one row group.
    fn parquet_of(schema: &str, write: impl FnOnce(&mut SerializedRowGroupWriter<'_, &mut Vec<u8>>)) -> Vec<u8> {
        let schema = Arc::new(parse_message_type(&format!("message rows {{ {schema} }}")).unwrap());
        let mut bytes = Vec::new();
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(&mut bytes, schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        write(&mut group);
        group.close().unwrap();
        writer.close().unwrap();
        bytes
    }

    /// Writes the next column; `levels` are the definition and repetition levels of nested columns.
    fn column<T: DataType>(
        group: &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>,
        cells: &[T::T],
        levels: Option<[&[i16]; 2]>,
    ) {
        let mut column = group.next_column().unwrap().unwrap();
        let [definitions, repetitions] = levels.map_or([None, None], |levels| levels.map(Some));
        column.typed::<T>().write_batch(cells, definitions, repetitions).unwrap();
        column.close().unwrap();
    }

    /// A file with the text columns `prompt` and `completion`.
    fn parquet(rows: &[[&str; 2]]) -> Vec<u8> {
        parquet_of("required binary prompt (UTF8); required binary completion (UTF8);", |group| {
            for index in 0..2 {
                let cells: Vec<_> = rows.iter().map(|row| row[index].into()).collect();
                column::<ByteArrayType>(group, &cells, None);
            }
        })
    }

    #[test]
    fn every_format_gives_the_same_rows() {
        let rows = [["a, \"b\"", "1"], ["two\nlines", "2 ¼"]];
        let objects = rows.map(|[prompt, completion]| json!({"prompt": prompt, "completion": completion}));
        let lines = objects.each_ref().map(Value::to_string).join("\n\n");
        let csv = "prompt,completion\n\n\n\"a, \"\"b\"\"\",1\n\"two\nlines\",2 ¼\n";
        let tsv = "\u{feff}prompt\tcompletion\r\n\"a, \"\"b\"\"\"\t1\r\n\"two\nlines\"\t2 ¼";
        let cases = [
            ("rows.jsonl", lines.clone().into_bytes(), [Place::Line(1), Place::Line(3)]),
            ("rows.jsonl", format!("\u{feff}{lines}").into_bytes(), [Place::Line(1), Place::Line(3)]),
            ("rows.json", lines.into_bytes(), [Place::Line(1), Place::Line(3)]),
            ("rows.json", format!("\u{feff}{}", json!(objects)).into_bytes(), [Place::Row(1), Place::Row(2)]),
            ("rows.JSON", format!(" {}", json!(objects)).into_bytes(), [Place::Row(1), Place::Row(2)]),
            ("rows.csv", csv.to_owned().into_bytes(), [Place::Line(4), Place::Line(5)]),
            ("rows.tsv", tsv.to_owned().into_bytes(), [Place::Line(2), Place::Line(3)]),
            ("rows.parquet", parquet(&rows), [Place::Row(1), Place::Row(2)]),
        ];
        for (name, bytes, places) in cases {
            let expected: Vec<(Place, Value)> = places.into_iter().zip(objects.clone()).collect();
            assert_eq!(read(name, bytes).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_place() {
        let whole = parquet(&[["a", "1"]]);
        let cases: [(&str, &[u8], &str); 9] = [
            (
                "a.jsonl",
                b"{}\n{\"a\": ",
                "a.jsonl, line 2: not a JSON object: EOF while parsing a value at column 5; correct",
            ),
            ("a.jsonl", b"{}\n\n[1]", "a.jsonl, line 3: not a JSON object: it is a list; correct the row"),
            ("a.jsonl", b"\xff", "a.jsonl, line 1: not UTF-8"),
            ("a.json", b"[{}, 2]", "a.json, row 2: not a JSON object: it is a number"),
            ("a.json", b"[{}, ", "a.json: not a JSON list: EOF"),
            ("a.csv", b"a,b\n1,2\n3\n", "a.csv, line 3: the row has 1 cells, but the first line names 2 columns"),
            ("a.csv", b"a,b\n1,\xff\n", "a.csv, line 2: not UTF-8"),
            ("a.csv", b"a,a\n1,2\n", "a.csv: the first line names the column `a` twice"),
            ("a.parquet", &whole[..whole.len() - 9], "a.parquet: not a readable Parquet file"),
        ];
        for (name, bytes, expected) in cases {
            let error = read(name, bytes.to_vec()).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        assert_eq!(read("a.csv", "a,b\n").unwrap(), []);
        let error = RowFile::open(Path::new("nowhere/a.csv")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read nowhere/a.csv");
    }

    #[test]
    fn dates_and_times_are_numbers_whatever_they_are() {
        let schema =
            "required int64 ms (TIMESTAMP_MILLIS); required int64 us (TIMESTAMP_MICROS); required int32 day (DATE);
            required int32 clock_ms (TIME_MILLIS); required int64 clock_us (TIME_MICROS); required int96 old;
            required group list (LIST) { repeated group list { required int32 element (DATE); } }
            required group map (MAP) { repeated group key_value {
                required int32 key (DATE); required int64 value (TIMESTAMP_MICROS); } }";
        let bytes = parquet_of(schema, |group| {
            column::<Int64Type>(group, &[i64::MAX, 1], None);
            column::<Int64Type>(group, &[i64::MIN, 2], None);
            column::<Int32Type>(group, &[i32::MAX, 3], None);
            column::<Int32Type>(group, &[-1, 4], None);
            column::<Int64Type>(group, &[-2, 5], None);
            column::<Int96Type>(group, &[vec![0, 0, i32::MAX as u32].into(), vec![0, 0, 2_440_589].into()], None);
            column::<Int32Type>(group, &[i32::MIN, 6, 7], Some([&[1, 1, 1], &[0, 1, 0]]));
            column::<Int32Type>(group, &[8, i32::MIN], Some([&[1, 1], &[0, 0]]));
            column::<Int64Type>(group, &[i64::MAX, 9], Some([&[1, 1], &[0, 0]]));
        });
        let day_ms: i64 = 86_400_000;
        let expected = [
            json!({"ms": i64::MAX, "us": i64::MIN, "day": i32::MAX, "clock_ms": -1, "clock_us": -2,
                "old": (i64::from(i32::MAX) - 2_440_588) * day_ms, "list": [i32::MIN, 6], "map": {"8": i64::MAX}}),
            json!({"ms": 1, "us": 2, "day": 3, "clock_ms": 4, "clock_us": 5, "old": day_ms, "list": [7],
                "map": {i32::MIN.to_string(): 9}}),
        ];
        let rows = read("rows.parquet", bytes).unwrap();
        assert_eq!(rows.into_iter().map(|(_, row)| row).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_damaged_parquet_file_is_an_error_wherever_it_is_damaged() {
        let whole = parquet(&[["a", "1"], ["b", "2"]]);
        let mut num_errors = 0;
        for (index, mask) in (0..whole.len()).flat_map(|index| [1, 0x0f, 0x80, 0xff].map(|mask| (index, mask))) {
            let mut bytes = whole.clone();
            bytes[index] ^= mask;
            let file = file("rows.parquet", bytes);
            let Ok(rows) = file.rows() else {
                num_errors += 1;
                continue;
            };
            let rows: Vec<_> = rows.take(100).collect();
            assert!(rows.len() < 100, "byte {index} with {mask:#x}: reading goes on after an error");
            num_errors += usize::from(rows.iter().any(Result::is_err));
        }
        assert!(num_errors > whole.len(), "{num_errors} errors of {} bytes", whole.len());
    }
}
