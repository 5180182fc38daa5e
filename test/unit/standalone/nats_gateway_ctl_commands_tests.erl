%% The words of `nats_gateway ctl'. What they do is in test/cli.
-module(nats_gateway_ctl_commands_tests).

-include_lib("eunit/include/eunit.hrl").

words_test_() ->
    [
        {Line, ?_assertEqual({ok, Command}, parse(Line))}
     || {Line, Command} <- [
            {"status", {status, text}},
            {"status --json", {status, json}},
            {"reload", {reload, text}},
            {"drain --json", {drain, json}},
            {"clients", {clients, text, #{}}},
            {"clients --user ann --json", {clients, json, #{user => <<"ann">>}}},
            {"kick 1", {kick, text, #{cid => 1}}},
            {"kick --json 18446744073709551616", {kick, json, #{cid => 1 bsl 64}}},
            {"kick --user --json", {kick, text, #{user => <<"--json">>}}}
        ]
    ].

wrong_words_test_() ->
    [
        {Line, ?_assertMatch({error, _}, parse(Line))}
     || Line <-
            ["", "stop", "status 1", "reload --user a", "clients 1", "clients --user"] ++
                ["kick", "kick 0", "kick -1", "kick x", "kick 1 2", "kick 1 --user a"]
    ].

%% No gateway is needed to find out that a command is wrong.
a_wrong_command_is_answered_test() ->
    ?assertMatch({64, _}, nats_gateway_ctl_commands:run([<<"stop">>])),
    ?assertMatch({64, _}, nats_gateway_ctl_commands:run([<<>>])),
    ?assertEqual({64, <<"the command is not UTF-8">>}, nats_gateway_ctl_commands:run([<<255, 0>>])).

parse(Line) -> nats_gateway_ctl_commands:parse([list_to_binary(Word) || Word <- string:lexemes(Line, " ")]).
