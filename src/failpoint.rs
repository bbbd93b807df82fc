//! Points in a run at which a test can make this program stop or panic.
//!
//! Two conditions keep them out of a release. The cargo feature `failpoints` is enabled only
//! by the tests of this package. And a build without debug assertions has no points even with
//! the feature: Cargo enables the feature for a program that is built together with an
//! example.

/// The variable that arms a point: `POINT panic NTH`, or `POINT hold NTH DIRECTORY`.
#[cfg(all(feature = "failpoints", debug_assertions))]
const VARIABLE: &str = "REWRAP_TEST_FAILPOINT";

/// A point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// The rows of a page were read.
    PageRead,
    /// A row is about to be decided.
    BeforeDecide,
    /// A row is about to be written.
    BeforeWrite,
    /// Postgres has answered that a row is written, and nothing remembers that yet.
    AfterWrite,
    /// The rows of a run are about to be flushed.
    BeforeBarrier,
    /// The report is about to be given.
    BeforeReport,
}

/// Does what the test asks for at this point.
#[cfg(all(feature = "failpoints", debug_assertions))]
pub(crate) fn reach(point: Point) {
    fail::fail_point!(armed::name(point));
}

/// Does nothing.
#[cfg(not(all(feature = "failpoints", debug_assertions)))]
#[inline(always)]
pub(crate) const fn reach(_: Point) {}

#[cfg(all(feature = "failpoints", debug_assertions))]
pub(crate) use self::armed::arm;

#[cfg(all(feature = "failpoints", debug_assertions))]
mod armed {
    use std::{
        fs,
        path::{Path, PathBuf},
        sync::atomic::{AtomicU32, Ordering},
        thread,
        time::Duration,
    };

    use super::{Point, VARIABLE};

    pub(super) fn name(point: Point) -> &'static str {
        match point {
            Point::PageRead => "page-read",
            Point::BeforeDecide => "before-decide",
            Point::BeforeWrite => "before-write",
            Point::AfterWrite => "after-write",
            Point::BeforeBarrier => "before-barrier",
            Point::BeforeReport => "before-report",
        }
    }

    /// Arms the point that the variable names, if it is set.
    ///
    /// # Panics
    ///
    /// If the variable cannot be understood.
    pub(crate) fn arm(variable: impl FnOnce(&str) -> Option<String>) {
        let Some(text) = variable(VARIABLE) else {
            return;
        };
        let words: Vec<_> = text.splitn(4, ' ').collect();
        let armed = match words[..] {
            [point, "panic", nth] => {
                let before = nth.parse::<u32>().map_or(0, |nth| nth.saturating_sub(1));
                fail::cfg(point, &format!("{before}*off->1*panic"))
            }
            [point, "hold", nth, directory] => {
                let nth = nth.parse::<u32>().unwrap_or(1);
                let directory = PathBuf::from(directory);
                let passed = AtomicU32::new(0);
                fail::cfg_callback(point, move || {
                    if passed.fetch_add(1, Ordering::SeqCst) + 1 == nth {
                        hold(&directory);
                    }
                })
            }
            _ => Err("expected POINT panic NTH, or POINT hold NTH DIRECTORY".to_owned()),
        };
        assert_eq!(armed, Ok(()), "{VARIABLE}={text}");
    }

    /// Makes the file `reached`, and waits for the file `go`. This blocks a thread of the
    /// runtime, so the process does hardly anything else meanwhile.
    fn hold(directory: &Path) {
        let reached = fs::write(directory.join("reached"), "");
        assert!(reached.is_ok(), "{reached:?}");
        while !directory.join("go").exists() {
            thread::sleep(Duration::from_millis(2));
        }
    }
}
