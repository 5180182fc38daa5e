-module(nats_gateway_tls_tests).

-include_lib("eunit/include/eunit.hrl").
-include_lib("public_key/include/public_key.hrl").

-import(nats_gateway_tls, [load/1, publish/1, options/1, forget/1, server_info/2, cipher_suite/1]).

-define(KEY, {?MODULE, listener}).

%% -------------------------------------------------------------------------------------------
%% Files

%% A leaf with such a key, the key, and who has signed it.
chain(Kind) ->
    Other = [{digest, sha256}, {key, ec()}],
    #{server_config := Config} = public_key:pkix_test_data(#{
        server_chain => #{
            root => Other, intermediates => [Other], peer => [{digest, sha256}, {key, Kind}]
        },
        client_chain => #{root => Other, intermediates => [], peer => Other}
    }),
    #{
        cert => proplists:get_value(cert, Config),
        key => proplists:get_value(key, Config),
        cacerts => proplists:get_value(cacerts, Config)
    }.

rsa() -> {rsa, 2048, 65537}.
ec() -> {namedCurve, ?'secp256r1'}.
ed25519() -> {namedCurve, ?'id-Ed25519'}.

pem(Ders) -> public_key:pem_encode([{'Certificate', Der, not_encrypted} || Der <- Ders]).

key_pem({Type, Der}) -> public_key:pem_encode([{Type, Der, not_encrypted}]).

encrypted_pem({Type, Der}, Password) ->
    Key = public_key:der_decode(Type, Der),
    Cipher = {"AES-128-CBC", crypto:strong_rand_bytes(16)},
    public_key:pem_encode([public_key:pem_entry_encode(Type, Key, {Cipher, Password})]).

write(File, Bytes) ->
    ok = file:write_file(File, Bytes),
    File.

settings(CertFile, KeyFile) ->
    #{
        listener => <<"ssl:test">>,
        key => ?KEY,
        mode => upgrade,
        allow_non_tls => false,
        handshake_first_wait => 50,
        handshake_timeout => 2000,
        verify => verify_none,
        certfile => CertFile,
        keyfile => KeyFile,
        options => [{verify, verify_none}, {log_level, none}]
    }.

%% A handshake with these options, over a socket.
handshake(Options) ->
    {ok, _} = application:ensure_all_started(ssl),
    {ok, Listen} = gen_tcp:listen(0, [binary, {active, false}, {ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Listen),
    Self = self(),
    spawn_link(fun() ->
        {ok, Client} = ssl:connect("127.0.0.1", Port, [
            {verify, verify_none}, {active, false}, {log_level, none}
        ]),
        {ok, Der} = ssl:peercert(Client),
        Self ! {peercert, Der},
        ssl:close(Client)
    end),
    {ok, Socket} = gen_tcp:accept(Listen),
    {ok, _} = ssl:handshake(Socket, Options, 5000),
    gen_tcp:close(Listen),
    receive
        {peercert, Der} -> Der
    after 5000 -> error(timeout)
    end.

%% -------------------------------------------------------------------------------------------
%% Loading

kinds_of_keys_test_() ->
    [
        {Name, fun() ->
            nats_gateway_test_directory:in(fun(Path) ->
                #{cert := Leaf, key := Key, cacerts := Authorities} = chain(Kind),
                Cert = write(Path("cert.pem"), pem([Leaf | Authorities])),
                {ok, Options} = load(settings(Cert, write(Path("key.pem"), key_pem(Key)))),
                ?assertEqual([Leaf | Authorities], proplists:get_value(cert, Options)),
                ?assertEqual(Leaf, handshake(Options)),
                %% in one file, the key first
                Both = write(Path("both.pem"), [key_pem(Key), pem([Leaf])]),
                {ok, One} = load(settings(Both, Both)),
                ?assertEqual(Leaf, handshake(One))
            end)
        end}
     || {Name, Kind} <- [{"rsa", rsa()}, {"ec", ec()}, {"ed25519", ed25519()}]
    ].

encrypted_keys_test_() ->
    [
        {Name, fun() ->
            nats_gateway_test_directory:in(fun(Path) ->
                #{cert := Leaf, key := Key} = chain(Kind),
                Settings = settings(
                    write(Path("cert.pem"), pem([Leaf])),
                    KeyFile = write(Path("key.pem"), encrypted_pem(Key, "open sesame"))
                ),
                {ok, Options} = load(Settings#{password => fun() -> <<"open sesame">> end}),
                ?assertEqual(Leaf, handshake(Options)),
                ?assertEqual(
                    {error, {password, KeyFile, <<"cannot decrypt it">>}},
                    load(Settings#{password => fun() -> <<"wrong">> end})
                ),
                ?assertEqual(
                    {error, {password, KeyFile, <<"is needed: it is encrypted">>}}, load(Settings)
                )
            end)
        end}
     || {Name, Kind} <- [{"rsa", rsa()}, {"ec", ec()}]
    ].

wrong_files_are_named_test() ->
    nats_gateway_test_directory:in(fun(Path) ->
        #{cert := Leaf, key := Key} = chain(ec()),
        #{key := Other} = chain(ec()),
        #{key := OtherKind} = chain(rsa()),
        Good = write(Path("cert.pem"), pem([Leaf])),
        GoodKey = write(Path("key.pem"), key_pem(Key)),
        Missing = Path("missing.pem"),
        Text = write(Path("text"), "not a certificate"),
        Garbage = write(Path("garbage.pem"), pem([<<"no certificate">>])),
        GarbageKey = write(Path("garbage.key"), key_pem({'RSAPrivateKey', <<"no key">>})),
        Wrong = write(Path("other.key"), key_pem(Other)),
        WrongKind = write(Path("rsa.key"), key_pem(OtherKind)),
        {ok, _} = load(settings(Good, GoodKey)),
        lists:foreach(
            fun({Setting, File, Expected, Settings}) ->
                {error, {Named, NamedFile, Reason}} = load(Settings),
                ?assertEqual({Setting, File}, {Named, NamedFile}),
                ?assertMatch({_, _}, binary:match(Reason, Expected))
            end,
            [
                {certfile, Missing, <<"no such file or directory">>, settings(Missing, GoodKey)},
                {certfile, Path(""), <<"illegal operation on a directory">>,
                    settings(Path(""), GoodKey)},
                {certfile, Text, <<"holds no certificate">>, settings(Text, GoodKey)},
                {certfile, GoodKey, <<"holds no certificate">>, settings(GoodKey, GoodKey)},
                {certfile, Garbage, <<"cannot be decoded">>, settings(Garbage, GoodKey)},
                {keyfile, Missing, <<"no such file or directory">>, settings(Good, Missing)},
                {keyfile, Text, <<"holds no private key">>, settings(Good, Text)},
                {keyfile, Good, <<"holds no private key">>, settings(Good, Good)},
                {keyfile, GarbageKey, <<"cannot be decoded">>, settings(Good, GarbageKey)},
                {keyfile, Wrong, <<"is not the key of the certificate in">>, settings(Good, Wrong)},
                {keyfile, WrongKind, <<"is not the key of the certificate in">>,
                    settings(Good, WrongKind)},
                {cacertfile, Missing, <<"no such file or directory">>,
                    (settings(Good, GoodKey))#{cacertfile => Missing}},
                {cacertfile, Text, <<"holds no certificate">>,
                    (settings(Good, GoodKey))#{cacertfile => Text}}
            ]
        )
    end).

%% -------------------------------------------------------------------------------------------
%% Files that change

changed_files_are_used_test() ->
    nats_gateway_test_directory:in(fun(Path) ->
        #{cert := First, key := FirstKey} = chain(ec()),
        #{cert := Second, key := SecondKey} = chain(ec()),
        Cert = write(Path("cert.pem"), pem([First])),
        Key = write(Path("key.pem"), key_pem(FirstKey)),
        ok = publish(settings(Cert, Key)),
        try
            Before = options(?KEY),
            ?assertEqual(First, handshake(Before)),
            ?assertEqual(Before, options(?KEY)),
            %% Half of it: what there was goes on.
            replace(Cert, pem([Second])),
            ?assertEqual(Before, options(?KEY)),
            ?assertEqual(Before, options(?KEY)),
            replace(Key, key_pem(SecondKey)),
            ?assertEqual(Second, handshake(options(?KEY))),
            %% In place, within the same second.
            ok = file:write_file(Key, key_pem(FirstKey)),
            ok = file:write_file(Cert, pem([First])),
            ?assertEqual(First, handshake(options(?KEY))),
            ok = file:write_file(Cert, pem([First, First])),
            ?assertNotEqual(Before, options(?KEY)),
            ok = file:write_file(Cert, pem([First])),
            ?assertEqual(Before, options(?KEY)),
            %% Nothing but its time is another.
            lists:foreach(
                fun(Seconds) ->
                    change_time(Cert, Seconds),
                    ?assertEqual(Before, options(?KEY))
                end,
                [-10, 10, 0]
            ),
            %% No file at all: what there was goes on.
            ok = file:delete(Cert),
            ?assertEqual(First, handshake(options(?KEY)))
        after
            forget(?KEY)
        end
    end).

replace(File, Bytes) ->
    ok = file:write_file(File ++ ".new", Bytes),
    ok = file:rename(File ++ ".new", File).

change_time(File, Seconds) ->
    Now = calendar:datetime_to_gregorian_seconds(calendar:local_time()),
    ok = file:change_time(File, calendar:gregorian_seconds_to_datetime(Now + Seconds)).

%% -------------------------------------------------------------------------------------------

server_info_test_() ->
    Info = fun(AllowNonTls, Verify, Secured) ->
        lists:sort(
            maps:keys(server_info(#{allow_non_tls => AllowNonTls, verify => Verify}, Secured))
        )
    end,
    [
        ?_assertEqual([tls_required], Info(false, verify_none, false)),
        ?_assertEqual([tls_required], Info(false, verify_none, true)),
        ?_assertEqual([tls_required, tls_verify], Info(false, verify_peer, false)),
        ?_assertEqual([tls_available], Info(true, verify_none, false)),
        ?_assertEqual([tls_available, tls_required], Info(true, verify_none, true)),
        ?_assertEqual([tls_available, tls_verify], Info(true, verify_peer, false))
    ].

cipher_suite_test_() ->
    [
        ?_assertMatch({ok, #{}}, cipher_suite(<<"TLS_AES_128_GCM_SHA256">>)),
        ?_assertMatch({ok, #{}}, cipher_suite(<<"ECDHE-RSA-AES128-GCM-SHA256">>)),
        ?_assertEqual(error, cipher_suite(<<"ROT13">>)),
        ?_assertEqual(error, cipher_suite(<<>>))
    ].
