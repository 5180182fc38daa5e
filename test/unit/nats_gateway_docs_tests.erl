%% The documentation beside what it describes: its links, and the tables of settings with their defaults.
-module(nats_gateway_docs_tests).

-include_lib("eunit/include/eunit.hrl").

pages() -> ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"] ++ filelib:wildcard("docs/*.md").

read(File) ->
    {ok, Text} = file:read_file(File),
    Text.

all(Pattern, Text) ->
    case re:run(Text, Pattern, [global, multiline, {capture, all_but_first, binary}]) of
        {match, Matches} -> Matches;
        nomatch -> []
    end.

%% -------------------------------------------------------------------------------------------
%% Links

links_test_() ->
    [
        {Page ++ " -> " ++ binary_to_list(Target), ?_assertEqual(ok, follow(Page, Target))}
     || Page <- pages(),
        [Target] <- all("\\]\\(([^)\\s]+)\\)", read(Page)),
        re:run(Target, "^[a-z]+:") =:= nomatch
    ].

follow(Page, Target) ->
    [Path, Anchor] =
        case binary:split(Target, <<"#">>) of
            [Whole] -> [Whole, <<>>];
            Both -> Both
        end,
    File =
        case Path of
            <<>> -> Page;
            _ -> filename:join(filename:dirname(Page), Path)
        end,
    case filelib:is_regular(File) orelse filelib:is_dir(File) of
        false -> no_such_file;
        true when Anchor =:= <<>> -> ok;
        true ->
            case lists:member(Anchor, anchors(read(File))) of
                true -> ok;
                false -> no_such_section
            end
    end.

anchors(Text) -> [anchor(Title) || [Title] <- all("^#+ (.*?)\\s*$", Text)].

%% As GitHub makes them.
anchor(Title) ->
    Plain = re:replace(string:lowercase(Title), "[^\\w\\- ]", "", [global, unicode, {return, binary}]),
    binary:replace(Plain, <<" ">>, <<"-">>, [global]).

every_page_is_in_the_index_test_() ->
    Index = read("README.md"),
    [
        {Page, ?_assertNotEqual(nomatch, binary:match(Index, list_to_binary("(" ++ Page ++ ")")))}
     || Page <- filelib:wildcard("docs/*.md")
    ].

readme_is_a_front_door_test() ->
    ?assert(length(binary:split(read("README.md"), <<"\n">>, [global])) =< 150).

%% -------------------------------------------------------------------------------------------
%% Settings

%% {Keys, Default} of the rows of a page's tables whose last column is the default. Several keys of a row
%% have as many defaults, or one for all.
rows(Page) ->
    [
        {[Key || [Key] <- all("`([^`]+)`", Keys)], Default}
     || [Keys, Default] <- all("^\\| ((?:`[^`|]+`(?:, )?)+) \\| .* \\| ?([^|]*?) \\|$", read(Page))
    ].

%% The documented default is the value that is there without it.
defaults_of_the_standalone_gateway_test_() ->
    {ok, Bare} = standalone(<<>>),
    [
        {binary_to_list(Key), fun() ->
            ?assertEqual({ok, Bare}, standalone(<<Key/binary, " = ", Value/binary, "\n">>))
        end}
     || {[Key], Default} <- rows("docs/standalone.md"),
        Value <- [literal(Default)],
        Value =/= none,
        binary:match(Key, [<<"NAME">>, <<"…">>, <<"ssl_options">>]) =:= nomatch
    ].

defaults_of_a_listener_test_() ->
    Listener = fun(Type, More) ->
        standalone(<<"[listeners.", Type/binary, ".default]\n", More/binary>>)
    end,
    {ok, Tcp} = Listener(<<"tcp">>, <<>>),
    {ok, Ws} = Listener(<<"ws">>, <<>>),
    [
        {binary_to_list(Key), fun() ->
            ?assertEqual({ok, Tcp}, Listener(<<"tcp">>, <<Key/binary, " = ", Value/binary, "\n">>))
        end}
     || {[<<"listeners.tcp.NAME.", Key/binary>>], Default} <- rows("docs/standalone.md"),
        Value <- [literal(Default)],
        Value =/= none
    ] ++
        [
            {"websocket " ++ binary_to_list(Key), fun() ->
                Setting = <<"websocket = { ", Key/binary, " = ", Value/binary, " }\n">>,
                ?assertEqual({ok, Ws}, Listener(<<"ws">>, Setting))
            end}
         || {[Key], Default} <- rows("docs/websocket.md"),
            Value <- [literal(Default)],
            Value =/= none
        ].

%% Random ones are left out.
standalone(Toml) ->
    case nats_gateway_mqtt_nif:toml(Toml) of
        {ok, Tables} ->
            case nats_gateway_file:parse(Tables) of
                {ok, Config} -> {ok, maps:without([server_id, secret], Config)};
                Error -> Error
            end;
        Error ->
            Error
    end.

%% `"2s"', 4096, `false', `[]': what stands before an explanation is the default.
literal(Default) ->
    case re:run(Default, "^`?(\"[^\"]*\"|\\d+|true|false|\\[[^\\]`]*\\])`?(?:$|:| )", [{capture, [1], binary}]) of
        {match, [Value]} when binary_part(Default, byte_size(Default), -1) =/= <<";">> -> Value;
        _ -> none
    end.

every_setting_of_the_standalone_gateway_is_documented_test_() ->
    Documented = lists:append([Keys || {Keys, _} <- rows("docs/standalone.md")]),
    Settings = maps:without(
        %% made at the start, or of other keys
        [secret, server_id, login, listeners, upstream, clientinfo_override] ++
            [monitor, control, system, presence, devices, mappings, kv],
        nats_gateway_file:defaults()
    ),
    [
        {atom_to_list(Key), ?_assert(lists:member(atom_to_binary(Key), Documented))}
     || Key <- maps:keys(Settings)
    ].

%% The pages of listeners name the keys of the schemas, all of them and no others.
settings_of_listeners_are_documented_test_() ->
    [
        {"websocket.md", ?_assertEqual(keys(websocket_schema()), documented("docs/websocket.md"))},
        {"tls.md", ?_assertEqual(keys(tls_schema()), documented("docs/tls.md"))}
    ].

websocket_schema() -> nats_gateway_listener_config:websocket_schema().

tls_schema() -> nats_gateway_listener_config:tls_schema().

keys(Schema) ->
    lists:sort(lists:append([keys(atom_to_binary(Key), Kind) || {Key, {Kind, _}} <- maps:to_list(Schema)])).

keys(Key, {table, Schema}) -> [<<Key/binary, $., Inner/binary>> || Inner <- keys(Schema)];
keys(Key, _) -> [Key].

%% A quoted name is a value of a setting, and `tls_mode' is the head of a table, too.
documented(Page) ->
    lists:usort([Key || {Keys, _} <- rows(Page), Key <- Keys, binary:first(Key) =/= $"]).

defaults_of_tls_test_() ->
    {ok, Bare} = tls(<<>>),
    [
        {binary_to_list(Key), ?_assertEqual({ok, Bare}, tls(<<Key/binary, " = ", Value/binary, "\n">>))}
     || {[Key], Default} <- rows("docs/tls.md"),
        binary:first(Key) =/= $",
        Value <- [literal(Default)],
        Value =/= none
    ].

%% A table that is not there has no settings of its own: `ssl_options' is there, with one that has no default.
tls(Toml) ->
    {ok, Tables} = nats_gateway_mqtt_nif:toml(<<Toml/binary, "ssl_options.certfile = \"a.pem\"\n">>),
    nats_gateway_schema:check(tls_schema(), Tables).

every_documented_setting_of_the_plugins_page_is_there_test_() ->
    [Settings, _] = binary:split(read("docs/emqx.md"), <<"\n## Where the plugin does not run">>),
    Rows = all("^\\| ((?:`\\w+`(?:, )?)+) \\| .* \\|$", Settings),
    [?_assert(length(Rows) > 10)] ++
        [
            {binary_to_list(Key), ?_assert(lists:member(Key, page_fields()))}
         || [Keys] <- Rows, [Key] <- all("`([^`]+)`", Keys)
        ].

every_setting_of_presence_is_documented_test_() ->
    Documented = lists:append([Keys || {Keys, _} <- rows("docs/standalone.md")]),
    [
        {atom_to_list(Key), ?_assert(lists:member(<<"presence.", (atom_to_binary(Key))/binary>>, Documented))}
     || Key <- maps:keys(nats_gateway_presence:file_schema())
    ].

every_setting_for_devices_is_documented_test_() ->
    Documented = lists:append([Keys || {Keys, _} <- rows("docs/standalone.md")]),
    [
        {atom_to_list(Key), ?_assert(lists:member(<<"devices.", (atom_to_binary(Key))/binary>>, Documented))}
     || Key <- maps:keys(nats_gateway_device_config:file_schema())
    ].

every_setting_of_the_broker_is_documented_test_() ->
    Documented = lists:append([Keys || {Keys, _} <- rows("docs/standalone.md")]),
    #{upstream := Upstream} = nats_gateway_file:defaults(),
    [
        {atom_to_list(Key), ?_assert(lists:member(<<"upstream.", (atom_to_binary(Key))/binary>>, Documented))}
        %% made of `upstream.url' and `upstream.ssl_options'
     || Key <- maps:keys(Upstream) -- [host, port, tls]
    ].

%% OTP before 27 has no JSON.
page_fields() ->
    [Name || [Name] <- all("^    \\{\\s*\"name\": \"(\\w+)\"", read("priv/config_schema.avsc"))].

every_setting_of_the_plugins_page_is_documented_test_() ->
    Documented = lists:append([Keys || {Keys, _} <- rows("docs/emqx.md")]),
    [?_assert(length(page_fields()) > 15)] ++
        [
            {binary_to_list(Key), ?_assert(lists:member(Key, Documented))}
         || Key <- page_fields()
        ].

defaults_of_the_plugins_page_test_() ->
    [
        {binary_to_list(Key), fun() ->
            ?assertEqual(
                nats_gateway_emqx_page:parse(#{}),
                nats_gateway_emqx_page:parse(#{Key => page_value(Value)})
            )
        end}
     || {[Key], Default} <- rows("docs/emqx.md"),
        lists:member(Key, page_fields()),
        Value <- [literal(Default)],
        Value =/= none
    ].

page_value(<<"[]">>) -> [];
page_value(<<"true">>) -> true;
page_value(<<"false">>) -> false;
page_value(<<"\"", Rest/binary>>) -> binary:part(Rest, 0, byte_size(Rest) - 1);
page_value(Number) -> binary_to_integer(Number).
