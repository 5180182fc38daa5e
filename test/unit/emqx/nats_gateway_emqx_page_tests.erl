-module(nats_gateway_emqx_page_tests).

-include_lib("eunit/include/eunit.hrl").

%% Of `w0rd', cost 4.
-define(HASH, <<"$2a$04$JUIzNcqxj1tTtswnN1a6rOwYU7ysPtDI2t2MvR0L5NgENKQzHf/9y">>).

-import(nats_gateway_emqx_page, [parse/1]).

-define(MAX_MS, 16#FFFFFFFF).

parse(Field, Value) ->
    case parse(#{Field => Value}) of
        {ok, Settings} -> {ok, maps:get(binary_to_existing_atom(Field), Settings)};
        {error, Text} -> {error, Text}
    end.

defaults_test() ->
    ?assertEqual(
        {ok, #{
            max_control_line => 4096,
            max_subscriptions => 100000,
            max_sub_tokens => infinity,
            authentication_timeout => 2000,
            retained_on_subscribe => false,
            publish_properties => false,
            show_properties => false,
            auto_subscribe => false,
            devices => #{rules => [], timeout => 5000, idle_timeout => 60000, max_requests => 1000},
            max_pending => 67108864,
            send_timeout => 10000,
            drain_time => 1000,
            tls_mode => auto,
            allow_non_tls => false,
            handshake_first_wait => 50,
            peer_cert_as_username => disabled,
            login => nats_gateway_login:none(),
            system => nats_gateway_system_access:nobody(),
            presence => off,
            websocket_same_origin => false,
            websocket_jwt_cookie => undefined,
            monitor_bind => undefined,
            emqx_prometheus => false,
            built_in_may_serve => false,
            kv => off,
            mappings => {<<>>, <<>>}
        }},
        parse(#{})
    ).

%% The form starts with what a plugin without any stored settings does.
the_files_of_the_page_test() ->
    {ok, Bytes} = file:read_file(priv("config_schema.avsc")),
    {ok, Hocon} = file:read_file(priv("config.hocon")),
    {ok, Defaults} = parse(#{}),
    lists:foreach(
        fun(Name) ->
            Key = atom_to_binary(Name),
            {match, [Json]} = re:run(
                Bytes,
                [
                    <<"\"name\": \"">>,
                    Key,
                    <<"\",\\s*\"type\": (?:\"\\w+\"|\\{[^}]*\\}),\\s*\"default\": ([^,]+),">>
                ],
                [{capture, all_but_first, binary}]
            ),
            {match, [Stored]} = re:run(
                Hocon, [<<"^">>, Key, <<" = (.+)$">>], [multiline, {capture, all_but_first, binary}]
            ),
            ?assertEqual({Key, Json}, {Key, Stored}),
            ?assertEqual({ok, Defaults}, parse(#{Key => json(Json)}))
        end,
        (maps:keys(Defaults) -- [login, system, presence, devices, mappings, kv]) ++
            [presence_topic, presence_connected, presence_disconnected, presence_qos, presence_retain] ++
            nats_gateway_device_config:page_keys() ++ [kv_enable, kv_buckets] ++
            nats_gateway_mapping_config:page_keys() ++
            [internal_authn, token, nkeys, trusted_operators, resolver_preload] ++
            [system_users, system_nkeys, system_accounts]
    ).

json(<<"[]">>) -> [];
json(<<"true">>) -> true;
json(<<"false">>) -> false;
json(<<"\"", Text/binary>>) -> binary:part(Text, 0, byte_size(Text) - 1);
json(Number) -> binary_to_integer(Number).

priv(File) ->
    Ebin = filename:dirname(code:which(nats_gateway_emqx_page)),
    filename:join([filename:dirname(Ebin), "priv", File]).

%% The page has the keys of the table `devices' of the file.
devices_test_() ->
    Devices = fun(Key, Value) ->
        case parse(#{Key => Value}) of
            {ok, #{devices := Known}} -> Known;
            {error, Text} -> Text
        end
    end,
    [
        ?_assertMatch(
            #{rules := [#{subject := [<<"a">>]}]},
            Devices(<<"device_rules">>, [<<"a -> c -> r">>, <<>>])
        ),
        ?_assertMatch(
            <<"device_rules[2]: must be \"SUBJECT -> ", _/binary>>,
            Devices(<<"device_rules">>, [<<"a -> c -> r">>, <<"b -> c">>])
        ),
        ?_assertMatch(#{timeout := 3600000}, Devices(<<"device_timeout">>, <<"1h">>)),
        ?_assertMatch(<<"device_timeout: ", _/binary>>, Devices(<<"device_timeout">>, 3600001)),
        ?_assertMatch(#{idle_timeout := 0}, Devices(<<"device_idle_timeout">>, 0)),
        ?_assertMatch(<<"device_max_requests: ", _/binary>>, Devices(<<"device_max_requests">>, 65537))
    ].

limits_test_() ->
    [
        ?_assertEqual({Field, Value, Expected}, {Field, Value, result(Field, Value)})
     || {Field, Value, Expected} <- [
            {<<"max_control_line">>, <<"0">>, error},
            {<<"max_control_line">>, <<"511">>, error},
            {<<"max_control_line">>, <<"512">>, 512},
            {<<"max_control_line">>, <<"64KB">>, 65536},
            {<<"max_control_line">>, 65536, 65536},
            {<<"max_control_line">>, <<"1MB">>, 1048576},
            {<<"max_control_line">>, <<"1048577">>, error},
            {<<"max_subscriptions">>, 0, infinity},
            {<<"max_subscriptions">>, 1, 1},
            {<<"max_subscriptions">>, 1 bsl 30, 1 bsl 30},
            {<<"max_subscriptions">>, 1 bsl 30 + 1, error},
            {<<"max_subscriptions">>, -1, error},
            {<<"max_sub_tokens">>, 0, infinity},
            {<<"max_sub_tokens">>, 1, 1},
            {<<"max_sub_tokens">>, 255, 255},
            {<<"max_sub_tokens">>, 256, error},
            {<<"authentication_timeout">>, <<"0s">>, error},
            {<<"authentication_timeout">>, <<"1ms">>, 1},
            {<<"authentication_timeout">>, <<"4294967295ms">>, ?MAX_MS},
            {<<"authentication_timeout">>, <<"4294967296ms">>, error},
            {<<"retained_on_subscribe">>, true, true},
            {<<"retained_on_subscribe">>, <<"true">>, error},
            {<<"publish_properties">>, true, true},
            {<<"publish_properties">>, <<"true">>, error},
            {<<"show_properties">>, true, true},
            {<<"show_properties">>, 1, error},
            {<<"auto_subscribe">>, true, true},
            {<<"auto_subscribe">>, <<"true">>, error},
            {<<"max_pending">>, <<"0">>, error},
            {<<"max_pending">>, <<"1023B">>, error},
            {<<"max_pending">>, <<"1KB">>, 1024},
            {<<"max_pending">>, <<"1GB">>, 1 bsl 30},
            {<<"max_pending">>, <<"1073741825">>, error},
            {<<"send_timeout">>, <<"0ms">>, error},
            {<<"send_timeout">>, <<"4294967295ms">>, ?MAX_MS},
            {<<"send_timeout">>, <<"4294967296ms">>, error},
            {<<"monitor_bind">>, <<>>, undefined},
            {<<"monitor_bind">>, <<"127.0.0.1:8222">>, {{127, 0, 0, 1}, 8222}},
            {<<"monitor_bind">>, <<"[::1]:1">>, {{0, 0, 0, 0, 0, 0, 0, 1}, 1}},
            {<<"monitor_bind">>, <<"127.0.0.1:65536">>, error},
            {<<"monitor_bind">>, <<"somewhere">>, error},
            {<<"drain_time">>, <<"0s">>, 0},
            {<<"drain_time">>, <<"8s">>, 8000},
            {<<"drain_time">>, <<"8001ms">>, error},
            {<<"drain_time">>, <<"soon">>, error},
            {<<"tls_mode">>, <<"upgrade">>, upgrade},
            {<<"tls_mode">>, <<"never">>, error},
            {<<"allow_non_tls">>, true, true},
            {<<"handshake_first_wait">>, <<"0ms">>, error},
            {<<"handshake_first_wait">>, <<"1ms">>, 1},
            {<<"handshake_first_wait">>, <<"4294967295ms">>, ?MAX_MS},
            {<<"handshake_first_wait">>, <<"4294967296ms">>, error},
            {<<"peer_cert_as_username">>, <<"san_uri">>, san_uri},
            {<<"peer_cert_as_username">>, <<"md5">>, error}
        ]
    ].

result(Field, Value) ->
    case parse(Field, Value) of
        {ok, Result} ->
            Result;
        {error, Text} ->
            %% the text begins with the name of the field
            ?assertMatch({0, _}, binary:match(Text, <<Field/binary, ": must be ">>)),
            error
    end.

a_client_without_tls_needs_info_in_clear_test() ->
    Stored = #{<<"allow_non_tls">> => true},
    ?assertMatch({ok, #{allow_non_tls := true}}, parse(Stored#{<<"tls_mode">> => <<"auto">>})),
    ?assertEqual(
        {error, <<"allow_non_tls: must be false where tls_mode is handshake_first">>},
        parse(Stored#{<<"tls_mode">> => <<"handshake_first">>})
    ).

an_unknown_field_is_named_test() ->
    {error, Text} = parse(#{<<"max_controlline">> => <<"4KB">>}),
    ?assertMatch(<<"max_controlline: unknown key; known here: ", _/binary>>, Text).

%% The form has an empty text where somebody cleared the field.
system_access_of_the_page_test_() ->
    User = nats_gateway_credentials:public(user),
    Account = nats_gateway_credentials:public(account),
    System = fun(Key, Value) ->
        case parse(#{Key => Value}) of
            {ok, #{system := Access}} -> Access;
            {error, Text} -> Text
        end
    end,
    Nobody = nats_gateway_system_access:nobody(),
    [
        ?_assertEqual(Nobody#{users := [<<"a">>, <<"b">>]}, System(<<"system_users">>, [<<"a">>, <<>>, <<"b">>])),
        ?_assertEqual(Nobody, System(<<"system_users">>, [<<>>])),
        ?_assertEqual(Nobody#{nkeys := [User]}, System(<<"system_nkeys">>, [string:lowercase(User)])),
        ?_assertEqual(Nobody#{accounts := [Account]}, System(<<"system_accounts">>, [Account])),
        ?_assertEqual(
            <<"system_nkeys[1]: must be the public NKey of a user (U...)">>, System(<<"system_nkeys">>, [Account])
        ),
        ?_assertEqual(
            <<"system_accounts[2]: must be the public key of an account (A...)">>,
            System(<<"system_accounts">>, [Account, User])
        ),
        ?_assertEqual(<<"system_users[1]: must be the name of a user">>, System(<<"system_users">>, [1]))
    ].

%% `internal_authn' is the order; what a method needs stands beside it.
logins_of_the_page_test_() ->
    [Operator, Account] = [nats_gateway_credentials:pair(R) || R <- [operator, account]],
    Key = nats_gateway_credentials:public(user),
    Jwt = nats_gateway_credentials:account(Account, #{}, Operator),
    OfJwt = #{
        <<"trusted_operators">> => [nats_gateway_credentials:key(Operator)],
        <<"resolver_preload">> => [Jwt]
    },
    All = OfJwt#{
        <<"internal_authn">> => [<<"jwt">>, <<"nkey">>, <<"token">>],
        <<"token">> => ?HASH,
        <<"nkeys">> => [Key]
    },
    Wrong = fun(Change) ->
        {error, Text} = parse(maps:merge(All, Change)),
        ?assertEqual(nomatch, binary:match(Text, <<"s3cr3t">>)),
        Text
    end,
    [
        ?_test(begin
            {ok, Settings = #{login := Login}} = parse(All),
            ?assertNotEqual(nats_gateway_login:none(), Login),
            %% nothing else of them is kept
            ?assertEqual(nomatch, binary:match(term_to_binary(Settings), <<"s3cr3t">>)),
            {ok, #{login := Other}} = parse(All#{
                <<"internal_authn">> := [<<"token">>, <<"nkey">>, <<"jwt">>]
            }),
            ?assertNotEqual(Login, Other)
        end)
        | [
            ?_assertEqual(Expected, Wrong(Change))
         || {Expected, Change} <- [
                {<<"token: must not be empty">>, #{<<"token">> => <<>>}},
                {<<"nkeys: must not be empty">>, #{<<"nkeys">> => []}},
                {<<"trusted_operators: must not be empty">>, #{<<"trusted_operators">> => []}},
                {<<"token: is not used without token in internal_authn">>,
                    #{<<"internal_authn">> => [<<"jwt">>, <<"nkey">>]}},
                {<<"internal_authn: must be different from each other">>,
                    #{<<"internal_authn">> => [<<"token">>, <<"token">>]}},
                {<<"internal_authn[2]: must be one of token, nkey, jwt">>,
                    #{<<"internal_authn">> => [<<"token">>, <<"ldap">>]}},
                {<<"nkeys[2]: must be the public NKey of a user (U...)">>,
                    #{<<"nkeys">> => [Key, <<"s3cr3t">>]}},
                {<<"resolver_preload[1]: not a NATS JWT">>, #{<<"resolver_preload">> => [<<"s3cr3t">>]}},
                {<<"token: begins like a bcrypt hash, but is none">>, #{<<"token">> => <<"$2a$s3cr3t">>}},
                {<<"token: cannot be read from its file: no such file or directory">>,
                    #{<<"token">> => <<"file:///s3cr3t">>}},
                {<<"token: must have an absolute path behind file://">>, #{<<"token">> => <<"file://s3cr3t">>}}
            ]
        ]
    ].

%% A cleared field of the dashboard's form is a list of one empty text, and a comma at the end is one more of them.
cleared_fields_test() ->
    Key = nats_gateway_credentials:public(user),
    Cleared = maps:from_keys(
        [<<"internal_authn">>, <<"nkeys">>, <<"trusted_operators">>, <<"resolver_preload">>], [<<>>]
    ),
    ?assertEqual(parse(#{}), parse(Cleared)),
    NKeys = #{<<"internal_authn">> => [<<"nkey">>], <<"nkeys">> => [Key]},
    ?assertEqual(
        parse(NKeys),
        parse(NKeys#{<<"internal_authn">> := [<<"nkey">>, <<>>], <<"nkeys">> := [<<>>, Key, <<>>]})
    ),
    ?assertEqual({error, <<"nkeys: must not be empty">>}, parse(NKeys#{<<"nkeys">> := [<<>>]})),
    ?assertEqual({error, <<"nkeys: must be a list">>}, parse(NKeys#{<<"nkeys">> := Key})).

%% EMQX gives the settings of a plugin to all who may read them, as they are.
the_page_does_not_take_a_token_as_it_is_test_() ->
    [
        ?_assertEqual(
            {error, <<
                "token: must be a bcrypt hash, or file:// and the path of a file with the secret: "
                "EMQX shows these settings to all who may read them"
            >>},
            parse(#{<<"internal_authn">> => [<<"token">>], <<"token">> => Token})
        )
     || Token <- [
            <<"s3cr3t">>,
            %% no version of bcrypt
            <<"$2c$10$">>,
            binary:copy(<<"s3cr3t-t0ken">>, 100)
        ]
    ].

%% Who goes back to an older version has settings stored with the keys of a newer one, and EMQX
%% reads none of the settings if its schema lacks one of the keys. So none is ever removed.
-define(KEYS_EVER_SHIPPED, [
    max_control_line,
    max_subscriptions,
    max_sub_tokens,
    authentication_timeout,
    retained_on_subscribe,
    publish_properties,
    show_properties,
    auto_subscribe,
    device_rules,
    device_timeout,
    device_idle_timeout,
    device_max_requests,
    max_pending,
    send_timeout,
    drain_time,
    tls_mode,
    allow_non_tls,
    handshake_first_wait,
    peer_cert_as_username,
    internal_authn,
    token,
    nkeys,
    trusted_operators,
    resolver_preload,
    websocket_same_origin,
    websocket_jwt_cookie,
    monitor_bind,
    emqx_prometheus,
    built_in_may_serve,
    system_users,
    system_nkeys,
    system_accounts,
    presence_topic,
    presence_connected,
    presence_disconnected,
    presence_qos,
    presence_retain
]).

no_key_is_ever_removed_test_() ->
    {ok, Schema} = file:read_file(priv("config_schema.avsc")),
    {ok, Hocon} = file:read_file(priv("config.hocon")),
    {error, Text} = parse(#{<<"no_such_key">> => 1}),
    [_, Known] = binary:split(Text, <<"; known here: ">>),
    [
        [
            ?_assertNotEqual(nomatch, binary:match(Schema, <<"\"name\": \"", Key/binary, "\"">>)),
            ?_assertNotEqual(nomatch, binary:match(Hocon, <<Key/binary, " = ">>)),
            ?_assert(lists:member(Key, binary:split(Known, <<", ">>, [global])))
        ]
     || Name <- ?KEYS_EVER_SHIPPED, Key <- [atom_to_binary(Name)]
    ].

%% -------------------------------------------------------------------------------------------

-define(DECIDING, #{
    <<"internal_authn">> => [],
    <<"peer_cert_as_username">> => <<"disabled">>,
    <<"websocket_same_origin">> => false
}).

%% A file that was cut ends somewhere, and what somebody sends over REST replaces all of the page.
settings_without_what_decides_who_is_let_in_test_() ->
    [
        ?_assertMatch({ok, _}, nats_gateway_emqx_page:check(?DECIDING))
        | [
            ?_assertEqual(
                {error, <<Key/binary, ": must be there, because it decides who is let in">>},
                nats_gateway_emqx_page:check(maps:remove(Key, ?DECIDING))
            )
         || Key <- maps:keys(?DECIDING)
        ]
    ].

in_force_test_() ->
    {foreach, fun nats_gateway_emqx_page:forget/0,
        fun(_) -> nats_gateway_emqx_page:forget() end, [
            fun without_emqx_nobody_is_let_in/0,
            fun what_is_put_is_in_force/0,
            fun settings_that_are_not_valid_let_nobody_in/0
        ]}.

%% There is nobody who has stored settings.
without_emqx_nobody_is_let_in() ->
    {ok, Defaults} = parse(#{}),
    Nobody = Defaults#{login := nats_gateway_login:nobody()},
    ?assertEqual(Nobody, nats_gateway_emqx_page:get()).

what_is_put_is_in_force() ->
    {ok, Settings} = parse(#{<<"max_subscriptions">> => 7}),
    ok = nats_gateway_emqx_page:put(Settings),
    ?assertEqual(Settings, nats_gateway_emqx_page:get()).

%% Settings can be stored without us: by hand, or by another version of the plugin.
settings_that_are_not_valid_let_nobody_in() ->
    InForce = fun(Stored) ->
        #{login := Login, max_control_line := 4096} = nats_gateway_emqx_page:in_force(Stored),
        Login
    end,
    Facts = #{
        certified => false, nonce => undefined, peerhost => {127, 0, 0, 1}, transport => tcp, now => 0, offset => 0
    },
    ?assertEqual(nats_gateway_login:none(), InForce({ok, ?DECIDING})),
    [
        begin
            Login = InForce(Broken),
            ?assert(nats_gateway_login:auth_required(Login, false)),
            [
                ?assertEqual(
                    {error, {internal_authn, not_valid}},
                    nats_gateway_login:authenticate(Login, Connect, Facts)
                )
             || Connect <- [#{}, #{auth_token => <<"s3cr3t">>}, #{user => <<"u">>, pass => <<"p">>}]
            ],
            %% where the broker asks for a login, that still holds
            ?assertEqual(
                ignore,
                nats_gateway_login:authenticate(nats_gateway_login:fall_through(true, Login), #{}, Facts)
            )
        end
     || Broken <- [
            {error, <<"unreadable">>},
            {ok, #{}},
            {ok, maps:remove(<<"internal_authn">>, ?DECIDING)},
            {ok, ?DECIDING#{<<"key_of_a_newer_version">> => 1}},
            {ok, ?DECIDING#{<<"max_control_line">> => 1}},
            {ok, ?DECIDING#{<<"internal_authn">> => [<<"token">>], <<"token">> => <<"s3cr3t">>}},
            {ok, ?DECIDING#{<<"internal_authn">> => [<<"ldap">>]}},
            {ok, ?DECIDING#{<<"internal_authn">> => <<"token">>}}
        ]
    ].

%% -------------------------------------------------------------------------------------------
%% The callback of EMQX, which may come while the application is not started

-define(LOGINS, ?DECIDING#{<<"internal_authn">> := [<<"token">>], <<"token">> => ?HASH}).

on_config_changed_test_() ->
    {foreach, fun() -> nats_gateway_nif_loader:release() end,
        fun(_) ->
            ok = nats_gateway_emqx_page:forget(),
            ok = nats_gateway_nif_loader:release(),
            {module, _} = code:ensure_loaded(nats_gateway_nif)
        end,
        [
            fun a_stopped_plugin_checks_settings_and_has_no_library_afterwards/0,
            fun a_stopped_plugin_puts_nothing_in_force/0,
            fun what_was_saved_while_stopped_was_not_just_found/0,
            fun a_started_plugin_keeps_its_library/0,
            fun a_started_plugin_puts_them_in_force/0,
            fun a_started_plugin_knows_when_somebody_saved_them/0,
            fun no_error_tells_a_secret/0
        ]}.

change(New) -> nats_gateway_app:on_config_changed(#{}, New).

a_stopped_plugin_checks_settings_and_has_no_library_afterwards() ->
    ?assertEqual(ok, change(?LOGINS)),
    ?assertEqual(false, code:is_loaded(nats_gateway_nif)),
    ?assertEqual(
        {error, <<"token: begins like a bcrypt hash, but is none">>},
        change(?LOGINS#{<<"token">> := <<"$2a$s3cr3t">>})
    ),
    ?assertEqual(false, code:is_loaded(nats_gateway_nif)).

a_stopped_plugin_puts_nothing_in_force() ->
    {ok, Before} = parse(?DECIDING),
    ok = nats_gateway_emqx_page:put(Before),
    ?assertEqual(ok, change(?LOGINS)),
    ?assertEqual(Before, nats_gateway_emqx_page:get()).

%% EMQX knows no settings before those that it finds when it loads the plugin.
what_was_saved_while_stopped_was_not_just_found() ->
    Remembered = fun(Old) ->
        ok = nats_gateway_app:on_config_changed(Old, nats_gateway_fake_emqx:page_defaults()),
        persistent_term:get(nats_gateway_emqx_takeover, found)
    end,
    ?assertEqual(found, Remembered(#{})),
    ?assertEqual(saved, Remembered(?LOGINS)),
    ?assertEqual(found, Remembered(#{})).

a_started_plugin_keeps_its_library() ->
    ok = nats_gateway_nif_loader:acquire(),
    ?assertEqual(ok, change(?LOGINS)),
    ?assertEqual({ok, <<"a">>}, {ok, nats_gateway_nif:topic(<<"a">>, <<>>)}).

a_started_plugin_puts_them_in_force() ->
    true = register(nats_gateway_emqx_takeover, self()),
    Defaults = nats_gateway_fake_emqx:page_defaults(),
    try
        ?assertEqual(ok, change(Defaults#{<<"max_subscriptions">> := 7})),
        ?assertMatch(#{max_subscriptions := 7}, nats_gateway_emqx_page:get()),
        ?assertEqual(
            {error, <<"max_subscriptions: must be an integer from 0 (no limit) to 1073741824">>},
            change(Defaults#{<<"max_subscriptions">> := -1})
        ),
        ?assertMatch(#{max_subscriptions := 7}, nats_gateway_emqx_page:get())
    after
        unregister(nats_gateway_emqx_takeover)
    end.

a_started_plugin_knows_when_somebody_saved_them() ->
    true = register(nats_gateway_emqx_takeover, self()),
    Defaults = nats_gateway_fake_emqx:page_defaults(),
    Changed = fun(Old) ->
        ok = nats_gateway_app:on_config_changed(Old, Defaults),
        nats_gateway_emqx_page:was_saved_within(5000)
    end,
    try
        ?assertNot(nats_gateway_emqx_page:was_saved_within(5000)),
        ?assertNot(Changed(#{})),
        ?assert(Changed(?LOGINS)),
        ok = timer:sleep(30),
        ?assertNot(nats_gateway_emqx_page:was_saved_within(20)),
        ?assertNot(Changed(#{})),
        ?assert(Changed(?LOGINS)),
        ok = nats_gateway_emqx_page:forget(),
        ?assertNot(nats_gateway_emqx_page:was_saved_within(5000))
    after
        unregister(nats_gateway_emqx_takeover)
    end.

%% What is raised EMQX writes to its log, with the arguments.
no_error_tells_a_secret() ->
    [
        begin
            {error, Text} = change(Wrong),
            ?assertEqual(nomatch, binary:match(Text, [?HASH, <<"s3cr3t">>]))
        end
     || Wrong <- [
            ?LOGINS#{<<"token">> := [?HASH]},
            ?LOGINS#{<<"token">> := #{<<"s3cr3t">> => ?HASH}},
            ?LOGINS#{<<"nkeys">> => [?HASH | <<"s3cr3t">>]},
            ?LOGINS#{<<"internal_authn">> := [?HASH]}
        ]
    ].
