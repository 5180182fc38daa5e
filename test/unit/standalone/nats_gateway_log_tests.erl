%% Lines of the log. test/cli has the whole: files, hostile values, what reads JSON.
-module(nats_gateway_log_tests).

-include_lib("eunit/include/eunit.hrl").

line(Form, Msg) -> line(Form, false, Msg).

line(Form, Journal, Msg) ->
    ok = nats_gateway_nif:load(),
    Event = #{level => warning, msg => Msg, meta => #{time => 1500000000123456}},
    unicode:characters_to_binary(
        nats_gateway_log:format(Event, #{format => Form, journal => Journal})
    ).

json(Members) ->
    <<"{\"time\":\"2017-07-14T02:40:00.123456Z\",\"level\":\"warning\",", Members/binary, "}\n">>.

report() ->
    #{
        msg => lost,
        upstream => {"127.0.0.1", 1883},
        peer => {{0, 0, 0, 0, 0, 0, 0, 1}, 4222},
        count => 7,
        why => <<"it is ", 255>>,
        listeners => [<<"tcp:a">>, b],
        is_open => true,
        term => {a, "b"}
    }.

text_test() ->
    <<_Time:32/binary, Rest/binary>> = line(text, {report, report()}),
    ?assertEqual(
        <<" warning lost count=7 is_open=true listeners=[<<\"tcp:a\">>,b] peer=[::1]:4222 term={a,\"b\"}"
            " upstream=127.0.0.1:1883 why=it is \\xff\n">>,
        Rest
    ).

json_test() ->
    ?assertEqual(
        json(<<
            "\"msg\":\"lost\",\"count\":7,\"is_open\":true,\"listeners\":[\"tcp:a\",\"b\"],\"peer\":\"[::1]:4222\","
            "\"term\":\"{a,\\\"b\\\"}\",\"upstream\":\"127.0.0.1:1883\",\"why\":\"it is \\\\xff\""
        >>),
        line(json, {report, report()})
    ).

%% A report cannot take the place of what every line has.
keys_of_every_line_test() ->
    ?assertEqual(json(<<"\"msg\":\"m\",\"a\":1">>), line(json, {report, #{msg => m, a => 1, level => x, time => y}})).

the_journal_gets_the_level_test() ->
    ?assertEqual(<<"<4>warning m a=1\n">>, line(text, true, {report, #{msg => m, a => 1}})),
    ?assertMatch(<<"<4>{\"time\"", _/binary>>, line(json, true, {report, #{msg => m}})).

numbers_beyond_64_bits_test_() ->
    [
        ?_assertEqual(
            json(iolist_to_binary([<<"\"msg\":\"m\",\"n\":">>, Text])), line(json, {report, #{msg => m, n => N}})
        )
     || {N, Text} <- [
            {0, "0"},
            {1 bsl 64 - 1, "18446744073709551615"},
            {1 bsl 64, "\"18446744073709551616\""},
            {-(1 bsl 63), "-9223372036854775808"},
            {-(1 bsl 63) - 1, "\"-9223372036854775809\""},
            {1.5, "\"1.5\""},
            {[], "[]"},
            {"text", "\"text\""},
            {[[1, a], <<"b">>], "[[1,\"a\"],\"b\"]"},
            {[a | b], "\"[a|b]\""}
        ]
    ].

%% What OTP says, which has no word.
otp_test_() ->
    Report = line(json, {report, #{label => {a, b}, report => [{c, "d\ne"}]}}),
    [
        ?_assertEqual(json(<<"\"msg\":\"a b\"">>), line(json, {"a ~s", ["b"]})),
        ?_assertEqual(json(<<"\"msg\":\"plain\"">>), line(json, {string, "plain"})),
        ?_assertMatch(<<_:32/binary, " warning a b\n">>, line(text, {"a ~s", ["b"]})),
        ?_assertEqual(1, length(binary:matches(Report, <<"\n">>))),
        ?_assertMatch({match, _}, re:run(line(json, {"~s", [wrong, arguments]}), "\"msg\":\"FORMAT ERROR"))
    ].
