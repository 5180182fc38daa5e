//! CONNECT and INFO (docs/protocol.md sections 2 and 3).

#![allow(clippy::restriction)]

use nats_protocol::connect::{Connect, Info};

fn connect(json: &str) -> Connect {
    Connect::from_json(json.as_bytes()).unwrap_or_else(|| panic!("{json}"))
}

#[test]
fn all_fields() {
    let json = r#"{"verbose":false,"pedantic":true,"echo":false,"headers":true,
        "no_responders":true,"protocol":1,"user":"u","pass":"p","auth_token":"t","name":"n",
        "lang":"go","version":"1.2.3","tls_required":false,"jwt":"j","nkey":"k","sig":"s",
        "account":"a","new_account":true}"#;
    let expected = Connect {
        verbose: Some(false),
        pedantic: Some(true),
        echo: Some(false),
        headers: Some(true),
        no_responders: Some(true),
        protocol: Some(1),
        user: Some("u".into()),
        pass: Some("p".into()),
        auth_token: Some("t".into()),
        name: Some("n".into()),
        lang: Some("go".into()),
        version: Some("1.2.3".into()),
        tls_required: Some(false),
        jwt: Some("j".into()),
        nkey: Some("k".into()),
        sig: Some("s".into()),
        account: Some("a".into()),
        new_account: Some(true),
    };
    assert_eq!(connect(json), expected);
    assert_eq!(
        connect(&json.replace(':', " : ").replace(',', " ,\t")),
        expected
    );
}

#[test]
fn absent_null_and_unknown_are_nothing() {
    for json in [
        "{}",
        "null",
        " {} ",
        r#"{"verbose":null,"user":null,"protocol":null}"#,
        r#"{"lame_duck":true,"import":{"a":[1,null,{"b":"c"}]},"x":1e400}"#,
    ] {
        assert_eq!(connect(json), Connect::default(), "{json}");
    }
}

#[test]
fn keys_match_like_in_go() {
    for key in [
        "verbose",
        "VERBOSE",
        "vErBoSe",
        "verbo\u{17F}e",
        "\\u0076erbose",
    ] {
        assert_eq!(
            connect(&format!(r#"{{"{key}":true}}"#)).verbose,
            Some(true),
            "{key}"
        );
    }
    assert_eq!(
        connect("{\"n\u{212A}ey\":\"x\"}").nkey.as_deref(),
        Some("x")
    );
    assert_eq!(connect(r#"{"no-responders":true}"#), Connect::default());
}

#[test]
fn the_last_duplicate_wins() {
    assert_eq!(
        connect(r#"{"user":"a","USER":"b"}"#).user.as_deref(),
        Some("b")
    );
    assert_eq!(
        connect(r#"{"user":"a","user":null}"#).user.as_deref(),
        Some("a")
    );
}

#[test]
fn integers() {
    for (text, value) in [
        ("0", 0),
        ("2", 2),
        ("-1", -1),
        ("9223372036854775807", i64::MAX),
    ] {
        let json = format!(r#"{{"protocol":{text}}}"#);
        assert_eq!(connect(&json).protocol, Some(value), "{json}");
    }
}

#[test]
fn everything_else_is_refused() {
    for json in [
        "",
        " ",
        "x",
        "{",
        "}",
        "[]",
        "1",
        "true",
        "\"\"",
        "{} x",
        "{}{}",
        "{\"a\"}",
        "{a:1}",
        "{'a':1}",
        "{\"a\":1,}",
        "nul",
        "{\"a\":\u{1}\"\"}",
        "{\"us\u{1}er\":\"x\"}",
        "{\"user\":\"a\u{1}b\"}",
        "{\"user\":\"a\tb\"}",
        r#"{"verbose":"no"}"#,
        r#"{"verbose":0}"#,
        r#"{"verbose":[]}"#,
        r#"{"protocol":1.5}"#,
        r#"{"protocol":1.0}"#,
        r#"{"protocol":1e0}"#,
        r#"{"protocol":"1"}"#,
        r#"{"protocol":true}"#,
        r#"{"protocol":9223372036854775808}"#,
        r#"{"user":1}"#,
        r#"{"user":true}"#,
        r#"{"user":{}}"#,
        r#"{"user":["x"]}"#,
        // It is wrong even if a later duplicate is right.
        r#"{"user":1,"user":"x"}"#,
    ] {
        assert_eq!(Connect::from_json(json.as_bytes()), None, "{json}");
    }
}

#[test]
fn text_is_always_utf8() {
    let fields = Connect::from_json(b"{\"user\":\"a\xFFb\"}").expect("an object");
    assert_eq!(fields.user.as_deref(), Some("a\u{FFFD}b"));
    assert_eq!(
        connect(r#"{"user":"\u00e9\n\"\\"}"#).user.as_deref(),
        Some("\u{e9}\n\"\\")
    );
}

#[test]
fn logs_do_not_show_credentials() {
    let fields = connect(
        r#"{"user":"SECRET1","pass":"SECRET2","auth_token":"SECRET3","jwt":"SECRET4",
            "nkey":"SECRET5","sig":"SECRET6","name":"shown"}"#,
    );
    let text = format!("{fields:?}");
    assert!(text.contains("shown") && !text.contains("SECRET"), "{text}");
}

fn line(info: &Info<'_>) -> String {
    let mut out = Vec::new();
    info.write_line(&mut out);
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn info_line() {
    assert_eq!(line(&Info::default()), "INFO {} \r\n");
    let info = Info {
        server_id: Some("N\"1"),
        version: Some("2.10.27"),
        proto: Some(1),
        go: Some("go1.24"),
        host: Some("0.0.0.0"),
        port: Some(u16::MAX),
        headers: Some(true),
        max_payload: Some(1_048_576),
        client_id: Some(7),
        auth_required: Some(false),
        nonce: Some("x\r\ny"),
        ..Info::default()
    };
    let text = line(&info);
    let json = text
        .strip_prefix("INFO ")
        .and_then(|rest| rest.strip_suffix(" \r\n"));
    let json = json.expect("an INFO line");
    assert!(!json.contains(['\r', '\n']), "{json:?}");
    let expected = serde_json::json!({
        "server_id": "N\"1", "version": "2.10.27", "proto": 1, "go": "go1.24", "host": "0.0.0.0",
        "port": 65535, "headers": true, "max_payload": 1_048_576, "client_id": 7,
        "auth_required": false, "nonce": "x\r\ny",
    });
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(json).expect("JSON"),
        expected
    );
}

/// `JSON.stringify` writes half of a surrogate pair as an escape, and Go reads it as U+FFFD.
#[test]
fn half_pairs_are_replacement_characters() {
    for (written, read) in [
        (r"\ud83d", "\u{FFFD}"),
        (r"\uDE00", "\u{FFFD}"),
        (r"a\ud83d\ud83d\ude00b", "a\u{FFFD}\u{1F600}b"),
        (r"\ude00\ud83d", "\u{FFFD}\u{FFFD}"),
        (r"\ud83d\u0041", "\u{FFFD}A"),
        (r"\ud83dx", "\u{FFFD}x"),
        (r"\ud83d\n", "\u{FFFD}\n"),
        (r"\ud7ff\ue000", "\u{D7FF}\u{E000}"),
        (r"\ud83d\ude00", "\u{1F600}"),
        ("\u{1F600}\u{D7FF}", "\u{1F600}\u{D7FF}"),
    ] {
        for field in [
            "user",
            "pass",
            "auth_token",
            "name",
            "lang",
            "version",
            "jwt",
            "nkey",
            "sig",
            "account",
        ] {
            let json = format!(r#"{{"{field}":"{written}"}}"#);
            let connect = Connect::from_json(json.as_bytes()).unwrap();
            let value = match field {
                "user" => connect.user,
                "pass" => connect.pass,
                "auth_token" => connect.auth_token,
                "name" => connect.name,
                "lang" => connect.lang,
                "version" => connect.version,
                "jwt" => connect.jwt,
                "nkey" => connect.nkey,
                "sig" => connect.sig,
                _ => connect.account,
            };
            assert_eq!(value.as_deref(), Some(read), "{json}");
        }
        // In a key, and in a field that nobody reads.
        let json = format!(r#"{{"{written}":"{written}","x":["{written}"],"name":"n"}}"#);
        let connect = Connect::from_json(json.as_bytes()).unwrap();
        assert_eq!(connect.name.as_deref(), Some("n"), "{json}");
    }
    for wrong in [
        r#"{"name":"\ud83"}"#,
        r#"{"name":"\uzzzz"}"#,
        r#"{"name":[239]}"#,
        r#"{"name":1}"#,
    ] {
        assert!(Connect::from_json(wrong.as_bytes()).is_none(), "{wrong}");
    }
}
