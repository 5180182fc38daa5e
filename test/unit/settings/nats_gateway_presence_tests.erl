-module(nats_gateway_presence_tests).

-include_lib("eunit/include/eunit.hrl").

-define(TOPIC, <<"presence/${name}">>).

settings(Table) ->
    case nats_gateway_schema:check(nats_gateway_presence:file_schema(), Table) of
        {ok, Settings} -> nats_gateway_presence:of_file(Settings);
        {error, Text} -> {error, Text}
    end.

client(Settings, Fields) ->
    #{
        connect => Fields,
        listener => <<"tcp:default">>,
        peername => {{10, 0, 0, 1}, 4000},
        config => #{presence => Settings, server_name => <<"edge">>}
    }.

session(Mountpoint) -> #{mountpoint => Mountpoint, clientid => <<"c1">>, username => undefined}.

messages(Table, Fields) -> messages(Table, Fields, <<>>, infinity).

messages(Table, Fields, Mountpoint, MaxLevels) ->
    Settings = #{} = settings(Table),
    nats_gateway_presence:messages(client(Settings, Fields), session(Mountpoint), MaxLevels).

off_test() ->
    ?assertEqual(off, settings(#{})),
    ?assertEqual(off, settings(#{<<"topic">> => <<>>, <<"connected">> => <<"x">>})),
    ?assertEqual(none, nats_gateway_presence:messages(client(off, #{}), session(<<>>), 128)),
    %% a gateway whose settings do not know of it
    ?assertEqual(none, nats_gateway_presence:messages(#{config => #{}}, session(<<>>), 128)).

defaults_test() ->
    ?assertMatch(
        #{
            topic := <<"t">>,
            connected := <<"online">>,
            disconnected := <<"offline">>,
            qos := 1,
            retain := true,
            prefix := <<"presence.">>
        },
        settings(#{<<"topic">> => <<"t">>})
    ).

%% The page has the same under other names.
page_test() ->
    {ok, Page} = nats_gateway_schema:check(nats_gateway_presence:page_schema(), #{
        <<"presence_topic">> => <<"t">>, <<"presence_qos">> => 0
    }),
    ?assertMatch(
        #{topic := <<"t">>, connected := <<"online">>, qos := 0, prefix := <<"presence_">>},
        nats_gateway_presence:of_page(Page)
    ),
    {ok, Nothing} = nats_gateway_schema:check(nats_gateway_presence:page_schema(), #{}),
    ?assertEqual(off, nats_gateway_presence:of_page(Nothing)).

limits_test_() ->
    [
        {binary_to_list(Key) ++ " " ++ integer_to_list(Size), fun() ->
            Table = #{<<"topic">> => <<"t">>, Key => binary:copy(<<"x">>, Size)},
            case Outcome of
                ok -> ?assertMatch(#{}, settings(Table));
                off -> ?assertEqual(off, settings(Table));
                error ->
                    {error, Text} = settings(Table),
                    Begin = <<Key/binary, ": must be a string of at most ">>,
                    ?assertMatch({0, _}, binary:match(Text, Begin))
            end
        end}
     || {Key, Size, Outcome} <- [
            {<<"topic">>, 0, off},
            {<<"topic">>, 1, ok},
            {<<"topic">>, 1024, ok},
            {<<"topic">>, 1025, error},
            {<<"connected">>, 0, ok},
            {<<"connected">>, 4096, ok},
            {<<"connected">>, 4097, error},
            {<<"disconnected">>, 0, ok},
            {<<"disconnected">>, 4096, ok},
            {<<"disconnected">>, 4097, error}
        ]
    ] ++
        [
            ?_assertEqual(Expected, is_map(settings(#{<<"topic">> => <<"t">>, <<"qos">> => QoS})))
         || {QoS, Expected} <- [{-1, false}, {0, true}, {1, true}, {2, false}]
        ].

refused_test_() ->
    [
        ?_assertMatch({error, <<Text:(byte_size(Text))/binary, _/binary>>}, settings(Table))
     || {Table, Text} <- [
            {#{<<"topic">> => <<"a/+">>}, <<"topic: must not have a wildcard, + or #">>},
            {#{<<"topic">> => <<"#">>}, <<"topic: must not have a wildcard, + or #">>},
            {#{<<"topic">> => <<"$SYS/a">>}, <<"topic: must not begin with $">>},
            {#{<<"topic">> => <<"a", 1>>}, <<"topic: must be the name of a topic">>},
            {#{<<"topic">> => <<"a", 255>>}, <<"topic: must be the name of a topic">>},
            {#{<<"topic">> => <<"a/${nme}">>}, <<
                "topic: has a placeholder that is unknown; known here: ${account}, "
            >>},
            {#{<<"topic">> => <<"a/${">>}, <<"topic: has a placeholder that is unknown">>},
            {#{<<"topic">> => <<"a/${name">>}, <<"topic: has a placeholder that is unknown">>},
            {#{<<"topic">> => <<"a/${}">>}, <<"topic: has a placeholder that is unknown">>},
            {#{<<"topic">> => 1}, <<"topic: must be a string">>},
            {#{<<"topic">> => <<"t">>, <<"connected">> => <<"${x}">>}, <<"connected: has a placeholder">>},
            {#{<<"topic">> => <<"t">>, <<"retain">> => 1}, <<"retain: must be true or false">>}
        ]
    ].

messages_test() ->
    Table = #{
        <<"topic">> => <<"presence/${name}/${clientid}">>,
        <<"connected">> => <<"${account} ${peerhost} ${server_name} ${listener} ${username}.">>,
        <<"disconnected">> => <<>>
    },
    ?assertMatch(
        #{
            topic := <<"site/presence/orders/c1">>,
            connected := <<"$G 10.0.0.1 edge tcp:default .">>,
            disconnected := <<>>,
            qos := 1,
            retain := true
        },
        messages(Table, #{name => <<"orders">>}, <<"site/">>, infinity)
    ).

%% What looks like JSON stays JSON, whatever the values are. Other text gets them as they are.
json_test() ->
    Name = <<"a\"b\\c\n", "é"/utf8>>,
    #{connected := Json} = messages(
        #{<<"topic">> => <<"t">>, <<"connected">> => <<" {\"name\":\"${name}\"}">>}, #{name => Name}
    ),
    ?assertEqual({ok, #{<<"name">> => Name}}, nats_gateway_nif:json_decode(string:trim(Json))),
    ?assertMatch(
        #{connected := <<"name: a\"b">>},
        messages(#{<<"topic">> => <<"t">>, <<"connected">> => <<"name: ${name}">>}, #{name => <<"a\"b">>})
    ).

%% A client does not choose the topic, and none gets a topic that is not meant.
unfit_test_() ->
    [
        {lists:flatten(io_lib:format("~tp", [Name])), fun() ->
            ?assertEqual(none, messages(#{<<"topic">> => ?TOPIC}, #{name => Name}))
        end}
     || Name <- [<<>>, <<"+">>, <<"a#">>, <<"a/b">>, <<"/">>, <<0>>, <<"a", 16#7F>>, <<255>>, <<16#FFFE/utf8>>]
    ] ++
        [
            ?_assertEqual(none, messages(#{<<"topic">> => <<"${name}/x">>}, #{name => <<"$SYS">>})),
            ?_assertMatch(
                #{topic := <<"presence/$x">>}, messages(#{<<"topic">> => ?TOPIC}, #{name => <<"$x">>})
            )
        ].

size_of_a_topic_test() ->
    Of = fun(Bytes) ->
        messages(#{<<"topic">> => ?TOPIC}, #{name => binary:copy(<<"x">>, Bytes - 9)})
    end,
    ?assertMatch(#{topic := <<_:65535/binary>>}, Of(65535)),
    ?assertEqual(none, Of(65536)).

size_of_a_payload_test() ->
    Of = fun(Bytes) ->
        messages(
            #{<<"topic">> => <<"t">>, <<"disconnected">> => <<"${name}">>},
            #{name => binary:copy(<<"x">>, Bytes)}
        )
    end,
    ?assertMatch(#{disconnected := <<_:65535/binary>>}, Of(65535)),
    ?assertEqual(none, Of(65536)).

levels_test() ->
    Of = fun(Max) -> messages(#{<<"topic">> => <<"a/b/c">>}, #{}, <<"m/">>, Max) end,
    ?assertEqual(none, Of(3)),
    ?assertMatch(#{}, Of(4)),
    ?assertMatch(#{}, Of(infinity)).
