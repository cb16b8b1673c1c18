use std::io::Read;

use prost::Message;

use super::*;

#[global_allocator]
static ALLOCATOR: FollowedAllocator = FollowedAllocator;

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

/// Have names of their own in every build.
#[inline(never)]
fn keeps_much() -> Vec<Vec<u8>> {
    let kept = (0..2000).map(|n: usize| vec![1; 4096 + n % 7]).collect();
    std::hint::black_box(&kept); // no tail call, which would have no frame
    kept
}

#[inline(never)]
fn grows_and_forgets() {
    for _ in 0..200 {
        let mut buffer = Vec::new();
        for n in 0..100_000_u64 {
            buffer.push(n);
        }
        std::hint::black_box(&buffer);
    }
}

fn values(lines: &str, function: &str) -> i64 {
    let lines = lines.lines().filter(|line| line.contains(function));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<i64>().unwrap()).sum()
}

#[tokio::test]
async fn what_lives_is_found_where_it_was_allocated() {
    let _alone = ALONE.lock().await;
    let refused = heap(HeapProfile { length: None, form: Form::Folded }).await;
    assert!(matches!(refused, Err(ProfileError::NotFollowed)), "{refused:?}");
    let wanted = HeapProfile { length: Some(Duration::from_millis(1500)), form: Form::Pprof };
    let work = std::thread::spawn(|| {
        std::thread::sleep(Duration::from_millis(200));
        let kept = keeps_much();
        grows_and_forgets();
        std::thread::sleep(Duration::from_secs(2));
        kept.len()
    });
    let file = heap(wanted).await.unwrap();
    work.join().unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&file[..]).read_to_end(&mut bytes).unwrap();
    let profile = pprof::Profile::decode(&bytes[..]).unwrap();
    let text = |place: i64| profile.string_table[usize::try_from(place).unwrap()].as_str();
    let kinds: Vec<_> = profile.sample_type.iter().map(|kind| text(kind.r#type)).collect();
    assert_eq!(kinds, ["alloc_objects", "alloc_space", "inuse_objects", "inuse_space"]);
    let name = |location: u64| {
        let line = &profile.location[usize::try_from(location).unwrap() - 1].line[0];
        text(profile.function[usize::try_from(line.function_id).unwrap() - 1].name)
    };
    let of = |function: &str| {
        let mut sums = [0; 4];
        for sample in &profile.sample {
            if sample.location_id.iter().any(|location| name(*location).contains(function)) {
                sums.iter_mut().zip(&sample.value).for_each(|(sum, value)| *sum += value);
            }
            assert!(
                !name(sample.location_id[0]).contains("profile::allocator"),
                "{}",
                name(sample.location_id[0])
            );
        }
        sums
    };
    // 8.2 MB in 2000 pieces; of about 130 samples one in eleven is the standard deviation.
    let [objects, space, living, in_use] = of("keeps_much");
    assert!((5_000_000..13_000_000).contains(&space), "{space}");
    assert!((1200..3200).contains(&objects), "{objects}");
    assert_eq!((living, in_use), (objects, space), "all of it lives");
    // Each of 200 grew by doubling, to a megabyte.
    let [_, space, _, in_use] = of("grows_and_forgets");
    assert!((200_000_000..800_000_000).contains(&space), "{space}");
    assert_eq!(in_use, 0, "nothing of it lives");
}

#[tokio::test]
async fn memory_in_lines_is_what_lives() {
    let _alone = ALONE.lock().await;
    let work = std::thread::spawn(|| {
        std::thread::sleep(Duration::from_millis(100));
        let kept = keeps_much();
        std::thread::sleep(Duration::from_millis(900));
        kept.len()
    });
    let wanted = HeapProfile { length: Some(Duration::from_millis(600)), form: Form::Folded };
    let lines = String::from_utf8(heap(wanted).await.unwrap()).unwrap();
    work.join().unwrap();
    let bytes = values(&lines, "keeps_much");
    assert!((5_000_000..13_000_000).contains(&bytes), "{bytes}");
    assert_eq!(heap::found(), [], "nothing is kept afterwards");
}
