use std::io::Read;

use prost::Message;

use super::*;

/// Has a name of its own in every build.
#[inline(never)]
fn a_busy_function(until: std::time::Instant) -> u64 {
    let mut number = 1_u64;
    while std::time::Instant::now() < until {
        for n in 0..10_000 {
            number = std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(n));
        }
    }
    number
}

fn busy(length: Duration) -> std::thread::JoinHandle<u64> {
    let until = std::time::Instant::now() + length;
    std::thread::spawn(move || a_busy_function(until))
}

fn wanted(form: Form, length: Duration) -> CpuProfile {
    CpuProfile { length, frequency: 200, form }
}

/// Profiles of one process wait for each other here as they would not for strangers.
pub(crate) static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test]
async fn a_busy_function_is_found_by_its_name_in_both_forms() {
    let _alone = ALONE.lock().await;
    let length = Duration::from_millis(600);
    let work = busy(length * 4);
    let text = String::from_utf8(cpu(wanted(Form::Folded, length)).await.unwrap()).unwrap();
    let line = text.lines().find(|line| line.contains("a_busy_function")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.split(';').count() > 3, "its callers are there too: {line}");

    let file = cpu(wanted(Form::Pprof, length)).await.unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&file[..]).read_to_end(&mut bytes).unwrap();
    let profile = pprof::Profile::decode(&bytes[..]).unwrap();
    let text = |place: i64| profile.string_table[usize::try_from(place).unwrap()].as_str();
    assert_eq!(text(0), "");
    let kinds: Vec<_> = profile.sample_type.iter().map(|kind| (text(kind.r#type), text(kind.unit))).collect();
    assert_eq!(kinds, [("samples", "count"), ("cpu", "nanoseconds")]);
    assert_eq!((profile.period, profile.duration_nanos), (5_000_000, 600_000_000));
    let busy =
        profile.function.iter().find(|function| text(function.name).contains("a_busy_function")).unwrap();
    let places: Vec<u64> = profile
        .location
        .iter()
        .filter(|location| location.line.iter().any(|line| line.function_id == busy.id))
        .map(|location| location.id)
        .collect();
    let seen: i64 = profile
        .sample
        .iter()
        .filter(|sample| sample.location_id.iter().any(|id| places.contains(id)))
        .map(|sample| sample.value[1])
        .sum();
    assert!(seen > 50_000_000, "{seen} ns");
    work.join().unwrap();
}

#[tokio::test]
async fn there_is_one_profile_at_a_time_and_it_ends_with_its_reader() {
    let _alone = ALONE.lock().await;
    let long = tokio::spawn(cpu(wanted(Form::Folded, Duration::from_secs(300))));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let second = cpu(wanted(Form::Folded, Duration::from_secs(1))).await;
    assert!(matches!(second, Err(ProfileError::Busy)), "{second:?}");
    long.abort();
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while let Err(error) = cpu(wanted(Form::Folded, Duration::from_millis(10))).await {
        assert!(matches!(error, ProfileError::Busy), "{error}");
        assert!(std::time::Instant::now() < deadline, "the first one goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
