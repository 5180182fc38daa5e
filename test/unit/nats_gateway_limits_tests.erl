%% docs/limits.md names every bound with its setting and default: they are those of the settings.
-module(nats_gateway_limits_tests).

-include_lib("eunit/include/eunit.hrl").

-define(DOCUMENT, "docs/limits.md").

%% A default that is written down, taken as a setting, changes nothing.
standalone_defaults_test_() ->
    [{Key, ?_assertEqual(file(Key, none), file(Key, Default))} || {Key, Default, _} <- rows(), Default =/= none].

page_defaults_test_() ->
    [{Key, ?_assertEqual(page([]), page([Key, " = ", Default]))} || {Key, _, Default} <- rows(), Default =/= none].

%% Or the tests above could not fail.
another_value_is_noticed_test() ->
    ?assertNotEqual(file("max_pending", none), file("max_pending", "12345")),
    ?assertNotEqual(file("listeners.ssl.NAME.backlog", none), file("listeners.ssl.NAME.backlog", "7")),
    ?assertNotEqual(page([]), page("max_pending = \"12345\"")).

every_bound_is_there_test() ->
    Keys = [Key || {Key, _, _} <- rows()],
    Defaults = nats_gateway_file:defaults(),
    {ok, Page} = nats_gateway_emqx_page:parse(#{}),
    Bounds = [
        atom_to_list(Key)
     || {Key, Value} <- maps:to_list(maps:merge(Defaults, Page)), is_integer(Value) orelse Value =:= infinity
    ],
    ?assertEqual([], Bounds -- Keys).

%% Of the table of settings: key, default of the standalone file and of the plugin's page.
rows() ->
    {ok, Text} = file:read_file(?DOCUMENT),
    {match, Rows} = re:run(
        Text,
        <<"^\\| `([a-z_A-Z.]+)` \\| ([^|]+) \\| ([^|]+) \\|">>,
        [global, multiline, {capture, all_but_first, list}]
    ),
    [{Key, default(File), default(Page)} || [Key, File, Page] <- Rows].

default(Cell) ->
    case string:trim(Cell) of
        "`" ++ Quoted -> string:trim(Quoted, trailing, "`");
        _ -> none
    end.

%% What a file with this key makes, but for what is new at every start.
file(Key, Default) ->
    Lines = [listener(Key) | [[Key, " = ", Default, "\n"] || Default =/= none]],
    {ok, Settings} = nats_gateway_file:parse(toml(Lines)),
    maps:without([secret, server_id], Settings).

listener("listeners." ++ Key) ->
    [Type | _] = string:split(Key, "."),
    Certificate = [
        ["listeners.", Type, ".NAME.ssl_options.certfile = \"c.pem\"\n"]
     || Type =:= "ssl" orelse Type =:= "wss"
    ],
    ["listeners.", Type, ".NAME.bind = \"127.0.0.1:1\"\n" | Certificate];
listener(_) ->
    [].

page(Lines) -> nats_gateway_emqx_page:parse(toml(Lines)).

toml(Lines) ->
    {ok, Tables} = nats_gateway_mqtt_nif:toml(iolist_to_binary(Lines)),
    Tables.
